// Trains a small run with a fault at every file operation in turn, goes on with what is left of it, and compares with the undisturbed run.
//
//   crash_points FOLDER RANKS sync|async KIND [FIRST STEP]
//
// KIND: kill, kill_after, ENOSPC, EIO or short (fault_shim.c). Of the operations FIRST, FIRST + STEP ... (default: all). Each point is two forked children
// of this process, so that LibTorch is loaded once; ranks are threads, and the second child has another number of them. After each point:
//   - the first child was killed, has finished, or has ended by an error that a person can act on (74);
//   - the second goes on from the newest committed checkpoint, by the log of operations and by what lies on the disk, and finishes;
//   - weights (last and best), the rows of metrics.jsonl, TensorBoard's records and the steps of the checkpoints are those of the undisturbed run.
// Prints one line per broken promise, the counts last. Exit status: 1 if there is any.
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/sha256.h"
#include "core/config/load.h"
#include "core/training/trainer.h"
#include "distributed/error.h"
#include "distributed/threads.h"

extern "C" {
void fault_shim_arm();
long fault_shim_operations();
}

using namespace muster;
namespace fs = std::filesystem;

namespace {

constexpr const char* kExperiment = R"(# proto-file: core/config/experiment.proto
# proto-message: muster.config.Experiment
name: "crash"
preset: "foal_net_recommended"
data { synthetic { kind: CLASSIFICATION samples: 60 } standardize: true }
foal_net { projection_dim: 8 adapter_dim: 8 heads: 2 mem_weight: 0 }
training { epochs: 1 max_steps: 3 batch_size: 6 reproducible: true microbatches: 3 log_every_steps: 1 }
evaluation { every_steps: 2 batch_size: 64 }
checkpoints { every_steps: 1 every_epochs: 0 every_minutes: 0 keep_last: 1 keep_best: 1 }
)";

struct Setting {
  std::string folder;
  int ranks;
  bool asynchronous;
  std::string experiment() const { return folder + "/experiment.txtpb"; }
  std::string work() const { return folder + "/work"; }  // where faults happen
  std::string run() const { return work() + "/run"; }
  std::string log() const { return folder + "/log"; }
  std::string output() const { return folder + "/output"; }
};

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

int train(const Setting& setting, int ranks) {
  const auto body = [&](distributed::Communicator& communicator) {
    at::set_num_threads(1);
    const auto loaded = config::load_experiment(setting.experiment(), {std::string("checkpoints.asynchronous=") + (setting.asynchronous ? "true" : "false")});
    training::TrainOptions options;
    options.run_directory = setting.run();
    options.begin = training::Begin::kAuto;
    training::train(loaded, options, communicator);
  };
  try {
    if (ranks == 1) {
      const auto communicator = distributed::make_solo_communicator();
      body(*communicator);
    } else {
      distributed::run_as_threads(ranks, body);
    }
    return 0;
  } catch (const distributed::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "internal error: %s\n", error.what());
    return 70;
  }
}

// Trains in a child. Its exit status, or minus the signal that ended it.
int train_in_child(const Setting& setting, int ranks, long at, const std::string& kind) {
  fs::remove(setting.log());
  const pid_t child = fork();
  if (child == 0) {
    const int output = ::open(setting.output().c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ::dup2(output, STDOUT_FILENO);
    ::dup2(output, STDERR_FILENO);
    ::alarm(60);  // nothing may hang
    ::setenv("MUSTER_FAULT_FOLDER", setting.work().c_str(), 1);
    ::setenv("MUSTER_FAULT_LOG", setting.log().c_str(), 1);
    ::setenv("MUSTER_FAULT_AT", std::to_string(at).c_str(), 1);
    ::setenv("MUSTER_FAULT_KIND", kind.c_str(), 1);
    fault_shim_arm();
    ::_exit(train(setting, ranks));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

struct Operation {
  std::string name, path, target, end;
};

std::vector<Operation> operations(const std::string& log) {
  std::istringstream lines(contents(log));
  std::vector<Operation> all;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::vector<std::string> parts{std::istream_iterator<std::string>(words), {}};
    if (parts.size() < 5) continue;
    const bool two = parts.size() >= 7;
    all.push_back({parts[2], parts[3], two ? parts[5] : "", parts.back()});
  }
  return all;
}

const std::string kCheckpoint = "run/checkpoints/step-";

// Steps of the checkpoints that are committed when the log ends: a commit gives a name, a removal takes it.
std::set<uint64_t> committed(const Setting& setting) {
  std::set<uint64_t> steps;
  const auto step_of = [](const std::string& path) { return std::strtoull(path.c_str() + kCheckpoint.size(), nullptr, 10); };
  const auto is_checkpoint = [](const std::string& path) { return path.rfind(kCheckpoint, 0) == 0 && path.find('/', kCheckpoint.size()) == std::string::npos; };
  for (const auto& operation : operations(setting.log())) {
    if (operation.name != "rename" || operation.end != "ok") continue;
    if (is_checkpoint(operation.path)) steps.erase(step_of(operation.path));
    if (is_checkpoint(operation.target)) steps.insert(step_of(operation.target));
  }
  return steps;
}

// What must be alike whatever happened on the way, as text for people to compare.
std::map<std::string, std::string> outcome(const Setting& setting) {
  std::map<std::string, std::string> found;
  const auto result = nlohmann::json::parse(contents(setting.run() + "/result.json"), nullptr, false);
  found["result.json"] = result.is_discarded() ? "absent" : nlohmann::json{result["last"], result["best"], result["valid"], result["test"]}.dump();
  std::istringstream lines(contents(setting.run() + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    auto row = nlohmann::json::parse(line, nullptr, false);
    // What depends on the machine or on the number of ranks.
    for (const char* name : {"samples_per_second", "bytes_sent", "microbatches"}) row.erase(name);
    found["metrics.jsonl"] += row.dump() + "\n";
  }
  for (const char* name : {"last", "best"}) found[name] = checkpoints::sha256_of(contents(setting.run() + "/weights/" + name + ".safetensors"));
  for (const auto& checkpoint : checkpoints::find_checkpoints(setting.run() + "/checkpoints")) {
    checkpoints::verify_checkpoint(checkpoint.path);
    found["checkpoints"] += std::to_string(checkpoint.step) + " ";
  }
  for (const auto& entry : fs::recursive_directory_iterator(setting.work())) {
    const std::string name = entry.path().filename().string();
    if (name == "lock") found["leftover"] += name + " ";
    if (name.rfind("events.", 0) == 0) found["TensorBoard files"] += "x";
  }
  return found;
}

// Hidden things that nobody has cleared away: no harm, but counted.
std::vector<std::string> leftovers(const Setting& setting) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(setting.work()))
    if (const std::string name = entry.path().filename().string(); name[0] == '.') names.push_back(fs::relative(entry.path(), setting.work()).string());
  return names;
}

// The step that the last job went on from; nothing when it found the run finished. A job that begins goes on from 0.
std::optional<uint64_t> resumed_from(const Setting& setting, std::size_t resumes_before) {
  const auto environment = nlohmann::json::parse(contents(setting.run() + "/environment.json"), nullptr, false);
  const auto resumes = environment.value("resumes", nlohmann::json::array());
  if (resumes.size() <= resumes_before) return std::nullopt;
  return resumes.back().at("from_step").get<uint64_t>();
}

bool is_write(const std::string& name) { return name == "write" || name == "pwrite" || name == "writev" || name == "fwrite"; }

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const Setting setting{argv[1], std::atoi(argv[2]), std::string(argv[3]) == "async"};
  const std::string kind = argv[4];
  const long first = argc > 5 ? std::atol(argv[5]) : 1, step = argc > 6 ? std::atol(argv[6]) : 1;
  std::ofstream(setting.experiment()) << kExperiment;
  fs::remove_all(setting.work());
  fs::create_directories(setting.work());
  if (const int status = train_in_child(setting, setting.ranks, 0, ""); status != 0) {
    std::printf("the undisturbed run ended with %d:\n%s", status, contents(setting.output()).c_str());
    return 1;
  }
  const auto expected = outcome(setting);
  const auto undisturbed = operations(setting.log());
  const long count = static_cast<long>(undisturbed.size());
  long points = 0, broken = 0, finished = 0, stopped = 0, killed = 0, left = 0;
  std::map<std::string, long> left_names;
  for (long at = first; at <= count; at += step) {
    const auto& operation = undisturbed[at - 1];
    if (kind == "short" && !is_write(operation.name)) continue;
    ++points;
    fs::remove_all(setting.work());
    fs::create_directories(setting.work());
    const int ended = train_in_child(setting, setting.ranks, at, kind);
    const std::string first_output = contents(setting.output());
    const auto by_log = committed(setting);
    std::set<uint64_t> on_disk;
    for (const auto& found : checkpoints::find_checkpoints(setting.run() + "/checkpoints")) on_disk.insert(found.step);
    std::size_t resumes = 0;
    const int ranks = 1 + static_cast<int>((setting.ranks + at) % 3);
    const int resumed = train_in_child(setting, ranks, 0, "");
    const auto found = outcome(setting);

    std::vector<std::string> problems;
    const bool kills = kind.rfind("kill", 0) == 0;
    if (ended == -SIGKILL && kills) ++killed;
    else if (ended == 0) ++finished;
    else if (ended == 74 && !kills) ++stopped;
    else problems.push_back("the run ended with " + std::to_string(ended) + ": " + first_output);
    if (resumed != 0) problems.push_back("resuming on " + std::to_string(ranks) + " ranks ended with " + std::to_string(resumed) + ": " + contents(setting.output()));
    for (const uint64_t step_by_log : by_log)
      if (on_disk.count(step_by_log) == 0) problems.push_back("the committed checkpoint of step " + std::to_string(step_by_log) + " is gone");
    const auto from = resumed_from(setting, resumes);
    const uint64_t newest = on_disk.empty() ? 0 : *on_disk.rbegin();
    if (from && *from != newest) problems.push_back("it went on from step " + std::to_string(*from) + ", the newest checkpoint is of step " + std::to_string(newest));
    for (const auto& [what, text] : expected)
      if (what != "checkpoints" && found.count(what) == 0) problems.push_back(what + " is missing");
    for (const auto& [what, text] : found)
      if (expected.count(what) == 0 || expected.at(what) != text)
        problems.push_back(what + " differs:\n" + text + "\ninstead of\n" + (expected.count(what) ? expected.at(what) : ""));
    broken += problems.empty() ? 0 : 1;
    for (const auto& problem : problems)
      std::printf("BROKEN: %s at operation %ld of %ld (%s %s), %d ranks, %s: %s\n", kind.c_str(), at, count, operation.name.c_str(), operation.path.c_str(),
                  setting.ranks, argv[3], problem.c_str());
    for (const auto& name : leftovers(setting)) {
      ++left;
      ++left_names[name.substr(0, name.find_first_of("0123456789"))];
    }
    std::fflush(stdout);
  }
  std::printf("%s, %d ranks, %s: %ld operations, %ld points (%ld killed, %ld stopped, %ld finished all the same), %ld broken; %ld hidden leftovers",
              kind.c_str(), setting.ranks, argv[3], count, points, killed, stopped, finished, broken, left);
  for (const auto& [name, number] : left_names) std::printf(", %s*: %ld", name.c_str(), number);
  std::printf("\n");
  return broken > 0;
}
