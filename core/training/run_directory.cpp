#include "core/training/run_directory.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/atomic_file.h"
#include "distributed/error.h"

namespace muster::training {
namespace {

namespace fs = std::filesystem;
using distributed::Error;
using distributed::ExitCode;

[[noreturn]] void fail(const std::string& path, const std::string& what, const std::string& reason) {
  throw Error(ExitCode::kIo, path + ": " + what + ": " + reason);
}

}  // namespace

void require_new_run_directory(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(path, ignored))) return;
  const bool finished = fs::exists(path + "/result.json", ignored);
  throw Error(ExitCode::kUsage, path + " exists already" + (finished ? " and holds a finished run" : "") +
                                    ". A run is never overwritten: choose another --run-dir, or remove that one first");
}

RunDirectory::RunDirectory(const std::string& path, const std::string& config_text, const nlohmann::json& environment) : path_(path) {
  require_new_run_directory(path);
  const fs::path target = fs::absolute(path).lexically_normal();
  const fs::path final_path = target.has_filename() ? target : target.parent_path();
  std::error_code error;
  fs::create_directories(final_path.parent_path(), error);
  if (error) fail(final_path.parent_path().string(), "cannot create the folder", error.message());
  const fs::path building = final_path.parent_path() / ("." + final_path.filename().string() + ".new-" + std::to_string(getpid()));
  try {
    fs::create_directories(building / "weights");
    checkpoints::write_file_atomically((building / "config.txtpb").string(), config_text);
    checkpoints::write_file_atomically((building / "environment.json").string(), environment.dump(2) + "\n");
    metrics_ = std::fopen((building / "metrics.jsonl").c_str(), "ae");
    if (!metrics_) fail((building / "metrics.jsonl").string(), "cannot open", std::strerror(errno));
    fs::rename(building, final_path);
  } catch (const fs::filesystem_error& failure) {
    fs::remove_all(building, error);
    fail(path, "cannot create the run directory", failure.code().message());
  } catch (...) {
    fs::remove_all(building, error);
    throw;
  }
}

RunDirectory::~RunDirectory() {
  if (metrics_) std::fclose(metrics_);
}

void RunDirectory::append_metrics(const nlohmann::json& row) {
  const std::string line = row.dump() + "\n";
  if (std::fwrite(line.data(), 1, line.size(), metrics_) != line.size() || std::fflush(metrics_) != 0)
    fail(file("metrics.jsonl"), "cannot write", std::strerror(errno));
}

void RunDirectory::write(const std::string& name, const std::string& bytes) { checkpoints::write_file_atomically(file(name), bytes); }

}  // namespace muster::training
