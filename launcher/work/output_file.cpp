#include "launcher/work/output_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "core/data/container.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kHead = 4096;  // bytes that are looked at

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ExitCode::kUsage, fmt::format("{} is not written: {}. Give another output", path, why));
}

bool is_of_kind(const std::string& path, OutputKind kind) {
  std::error_code ignored;
  if (fs::file_size(path, ignored) == 0) return true;  // as mktemp makes it
  if (kind == OutputKind::kDataset) return data::is_container(path);
  const std::string head = head_of(path, kHead);
  const bool is_plot = head.rfind("<?xml", 0) == 0 && head.find("Matplotlib") != std::string::npos;
  if (kind == OutputKind::kPredictions) {
    for (const char* begin : {"id,label,prediction", "id,prediction", "id,label_", "id,\"label_", "id,\"prediction_"})
      if (head.rfind(begin, 0) == 0) return true;
    return false;
  }
  if (kind == OutputKind::kExport)
    return head.rfind("trial,state,value", 0) == 0 || head.rfind("parameter,importance", 0) == 0 || is_plot;
  if (kind == OutputKind::kRobustness) return head.rfind("perturbation,modality,rate,seed", 0) == 0 || is_plot;
  const char* message = kind == OutputKind::kStudy ? "launcher.Study" : "config.Experiment";
  return head.find(fmt::format("# proto-message: muster.{}", message)) != std::string::npos;
}

const char* name_of(OutputKind kind) {
  switch (kind) {
    case OutputKind::kPredictions:
      return "predictions (CSV)";
    case OutputKind::kDataset:
      return "a dataset of muster";
    case OutputKind::kExperiment:
      return "an experiment file";
    case OutputKind::kExport:
      return "what `muster search export` writes";
    case OutputKind::kRobustness:
      return "what `muster evaluate` writes with --drop, --noise and --plot";
    default:
      return "a study file";
  }
}

// The directory of a run, search or study that the file would lie in; empty: none.
fs::path owner_of(const fs::path& path) {
  std::error_code ignored;
  // Where it cannot be known, writing says why.
  for (fs::path folder = fs::weakly_canonical(fs::absolute(path, ignored), ignored).parent_path();
       folder != folder.parent_path(); folder = folder.parent_path())
    if ((fs::exists(folder / "config.txtpb", ignored) && fs::exists(folder / "environment.json", ignored)) ||
        (fs::exists(folder / "search.txtpb", ignored) && fs::is_directory(folder / "trials", ignored)) ||
        fs::is_directory(folder / "cells" / "base", ignored))
      return folder;
  return {};
}

void require_place(const std::string& path, const std::string& own) {
  std::error_code ignored;
  const fs::path owner = owner_of(path);
  if (!owner.empty() && (own.empty() || !fs::equivalent(owner, own, ignored)))
    refuse(path, fmt::format("it lies in {}, the directory of a run, search or study", owner.string()));
  if (owner.empty()) return;
  static const std::set<std::string> kept{"cells",  "checkpoints",          "frozen_features",       "jobs",
                                          "logs",   "predictions-test.csv", "predictions-valid.csv", "trials",
                                          "weights"};
  const fs::path inside = fs::weakly_canonical(fs::absolute(path, ignored), ignored).lexically_relative(owner);
  if (kept.count(inside.begin()->string())) refuse(path, "it lies among what the run itself keeps there");
}

}  // namespace

void require_output(const std::string& path, OutputKind kind, const std::vector<std::string>& inputs,
                    const std::string& own) {
  std::error_code ignored;
  if (path.empty()) throw Error(ExitCode::kUsage, "the output (-o) has no name");
  for (const auto& input : inputs)
    if (!input.empty() && fs::equivalent(path, input, ignored)) refuse(path, "it is an input of this command");
  if (fs::is_symlink(fs::symlink_status(path, ignored)))
    refuse(path, "it is a symbolic link, and files are not written through links");
  require_place(path, own);
  if (fs::exists(path, ignored) && !(fs::is_regular_file(path, ignored) && is_of_kind(path, kind)))
    refuse(path, fmt::format("something else is there, not {}", name_of(kind)));
}

void require_output_folder(const std::string& path, const std::string& own) {
  std::error_code ignored;
  require_place(path + "/file", own);
  if (fs::exists(path, ignored) && !fs::is_directory(path, ignored)) refuse(path, "it is not a folder");
}

}  // namespace muster::launcher
