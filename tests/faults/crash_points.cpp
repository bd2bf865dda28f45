// Trains a small run with a fault at every file operation in turn, goes on with what is left of it, and compares with
// the undisturbed run.
//
//   crash_points train|prepared|saver FOLDER RANKS sync|async PART PARTS [SEED]
//
// train: a whole training run; prepared: the same in a run directory that waits for it; saver: checkpoints alone, of a
// state that is not learnt (saver_run.h). Kinds of fault: kill, kill_after, ENOSPC, EIO, short (fault_shim.c). saver
// has every kind at every operation. train has kill at every operation, but of more than eight writes to one file only
// at the first two, the one in the middle and the last one; the other kinds at every third of those. PART of PARTS is
// the share of all that is done, or with SEED the share of a sample: one point of each stratum, which is a kind of
// fault at a kind of operation on a kind of file. A stratum falls to one of the PARTS by its name, so that settings
// that have different PARTs share the strata among them. A prepared run is sampled only until it trains like any other.
// Each point is two forked children of this process, so that LibTorch is loaded once; ranks are threads, and the second
// child has another number of them. After each point:
//   - the first child was killed, has finished, or has ended by an error that a person can act on (74);
//   - every checkpoint that the log of operations says is committed lies on the disk, and the second goes on from the
//   newest one there, and finishes;
//   - weights (last and best), results, the rows of metrics.jsonl and the tensors are those of the undisturbed run; the
//   checkpoints that it kept are
//     there, unless the fault made a save fail that was not needed any more, and all are whole. One too many may stay:
//     it goes with the next save.
// Before that, the log of the undisturbed run must show that every commit is flushed in the right order, since a power
// failure is not played. Prints a line per broken promise, the counts last. Exit status: 1 if there is any.
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/sha256.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/safetensors.h"
#include "core/config/load.h"
#include "core/run/run_directory.h"
#include "core/training/trainer.h"
#include "distributed/threads.h"
#include "tests/faults/saver_run.h"

extern "C" void fault_shim_arm();

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
  bool trains;
  bool prepared;
  std::string folder;
  int ranks;
  bool asynchronous;
  std::string experiment() const { return folder + "/experiment.txtpb"; }
  std::string work() const { return folder + "/work"; }  // where faults happen
  std::string run() const { return work() + "/run"; }
  std::string checkpoints() const { return run() + "/checkpoints"; }
  std::string report() const { return folder + "/report"; }
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
    const auto loaded = config::load_experiment(
        setting.experiment(), {std::string("checkpoints.asynchronous=") + (setting.asynchronous ? "true" : "false")});
    training::TrainOptions options;
    options.run_directory = setting.run();
    options.begin = training::Begin::kAuto;
    training::train(loaded, options, communicator);
  };
  try {
    if (ranks == 1) {
      const auto communicator = distributed::make_single_process_communicator();
      body(*communicator);
    } else {
      distributed::run_as_threads(ranks, body);
    }
    return 0;
  } catch (const muster::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "internal error: %s\n", error.what());
    return 70;
  }
}

// In a child. Its exit status, or minus the signal that ended it.
int run_in_child(const Setting& setting, int ranks, long at, const std::string& kind) {
  fs::remove(setting.log());
  fs::remove(setting.report());
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
    at::set_num_threads(
        1);  // PyTorch makes its thread pool anew in a forked child, and not safely from several threads
    ::_exit(setting.trains ? train(setting, ranks)
                           : faults::run_saver(setting.checkpoints(), setting.report(), ranks, setting.asynchronous));
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
std::set<uint64_t> committed(const Setting& setting, const std::string& kind) {
  std::set<uint64_t> steps;
  const auto step_of = [](const std::string& path) {
    return std::strtoull(path.c_str() + kCheckpoint.size(), nullptr, 10);
  };
  const auto is_checkpoint = [](const std::string& path) {
    return path.rfind(kCheckpoint, 0) == 0 && path.find('/', kCheckpoint.size()) == std::string::npos;
  };
  for (const auto& operation : operations(setting.log())) {
    if (operation.name != "rename" || (operation.end != "ok" && !(operation.end == "killed" && kind == "kill_after")))
      continue;
    if (is_checkpoint(operation.path)) steps.erase(step_of(operation.path));
    if (is_checkpoint(operation.target)) steps.insert(step_of(operation.target));
  }
  return steps;
}

// What must be alike whatever happened on the way, as text for people to compare.
std::map<std::string, std::string> outcome(const Setting& setting) {
  std::map<std::string, std::string> found;
  found["damage"] = "";
  for (const auto& checkpoint : checkpoints::find_checkpoints(setting.checkpoints())) {
    found["checkpoint " + std::to_string(checkpoint.step)] = checkpoint.path;
    try {
      checkpoints::verify_checkpoint(checkpoint.path);
    } catch (const muster::Error& error) {
      found["damage"] += std::string(error.what()) + "\n";
    }
  }
  if (!setting.trains) {
    std::ifstream report(setting.report());
    std::string from;
    report >> from >> found["fingerprint"];
    return found;
  }
  const auto result = nlohmann::json::parse(contents(setting.run() + "/result.json"), nullptr, false);
  found["result.json"] = result.is_discarded()
                             ? "absent"
                             : nlohmann::json{result["last"], result["best"], result["valid"], result["test"]}.dump();
  std::istringstream lines(contents(setting.run() + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    auto row = nlohmann::json::parse(line, nullptr, false);
    // What depends on the machine or on the number of ranks.
    for (const char* name : {"samples_per_second", "bytes_sent", "microbatches"}) row.erase(name);
    found["metrics.jsonl"] += row.dump() + "\n";
  }
  for (const char* name : {"last", "best"})
    found[name] = sha256_of(contents(setting.run() + "/weights/" + name + ".safetensors"));
  for (const auto& entry : fs::directory_iterator(setting.run()))
    if (const std::string name = entry.path().filename().string(); name == "lock" || name.rfind("events.", 0) == 0)
      found["lock and TensorBoard files"] += name.substr(0, 6) + " ";
  return found;
}

// Hidden things that nobody has cleared away: no harm, but counted.
std::vector<std::string> leftovers(const Setting& setting) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(setting.work()))
    if (const std::string name = entry.path().filename().string(); name[0] == '.')
      names.push_back(fs::relative(entry.path(), setting.work()).string());
  return names;
}

// Of the names of hidden things the end is drawn.
std::string without_drawn_ends(const std::string& names) {
  static const std::regex drawn(R"((\.[a-z.]+)-[^/ ]*)");
  return std::regex_replace(names, drawn, "$1");
}

// The step that the last job went on from, 0 for a beginning; nothing when it found the run finished.
std::optional<uint64_t> resumed_from(const Setting& setting) {
  if (!setting.trains) return std::strtoull(contents(setting.report()).c_str(), nullptr, 10);
  const auto environment = nlohmann::json::parse(contents(setting.run() + "/environment.json"), nullptr, false);
  if (!environment.is_object() || !environment.contains("resumes")) return std::nullopt;
  return environment["resumes"].back().at("from_step").get<uint64_t>();
}

bool is_write(const std::string& name) {
  return name == "write" || name == "pwrite" || name == "writev" || name == "fwrite";
}

// A kill loses nothing that was written; a power failure does. So every commit must have been flushed: each file after
// its last write, the folder before it gets its name, the name before anything older is taken away. What is not, if
// there is something.
std::string unflushed(const std::vector<Operation>& all) {
  for (std::size_t commit = 0; commit < all.size(); ++commit) {
    if (all[commit].name != "rename" || all[commit].target.rfind(kCheckpoint, 0) != 0) continue;
    const std::string& folder = all[commit].path;
    std::map<std::string, bool> flushed{{folder, false}};
    for (std::size_t i = 0; i < commit; ++i) {
      if (all[i].path.rfind(folder, 0) != 0) continue;
      if (all[i].name == "fsync") flushed[all[i].path] = true;
      if (all[i].name == "open" || all[i].name == "rename") flushed[folder] = false;
      if (is_write(all[i].name)) flushed[all[i].path] = false;
    }
    for (const auto& [path, is_flushed] : flushed)
      if (!is_flushed) return path + " is not flushed when it is committed";
    for (std::size_t i = commit + 1; i < all.size() && !(all[i].name == "fsync" && all[i].path == "run/checkpoints");
         ++i)
      if (all[i].path.rfind(kCheckpoint, 0) == 0)
        return "older checkpoints go before the name of " + all[commit].target + " is flushed";
  }
  return "";
}

struct Point {
  long at;  // the operation's number
  std::string kind;
};

// What is alike: a kind of fault at a kind of operation on a kind of file. The file says the phase: what is made ready,
// a checkpoint's parts before and after its commit, what is removed, results.
std::string stratum_of(const Point& point, const Operation& operation) {
  static const std::regex number("[0-9]+");
  const std::string names = fmt::format("{} {} {} {}", point.kind, operation.name, operation.path, operation.target);
  return std::regex_replace(without_drawn_ends(names), number, "N");
}

// All faults that can be tried. thinned: of the kinds other than kill at every third operation of a training run.
std::vector<Point> all_points(const Setting& setting, const std::vector<Operation>& undisturbed, bool thinned) {
  const long count = static_cast<long>(undisturbed.size());
  constexpr std::size_t kMany = 8;
  std::map<std::string, std::vector<long>>
      writes_to;  // ranks write at the same time: what follows each other may be of several files
  for (long i = 0; i < count; ++i)
    if (is_write(undisturbed[i].name)) writes_to[undisturbed[i].path].push_back(i);
  std::vector<Point> points;
  long number = setting.ranks + 3 * setting.asynchronous;  // so that other ones are left out in each setting
  for (long i = 0; i < count; ++i) {
    const bool writes = is_write(undisturbed[i].name);
    const auto& all = writes_to[undisturbed[i].path];
    if (setting.trains && writes && all.size() > kMany && i != all[0] && i != all[1] && i != all[all.size() / 2] &&
        i != all.back())
      continue;
    for (const char* kind : {"kill", "kill_after", "ENOSPC", "EIO", "short"}) {
      if (std::string(kind) == "short" && !writes) continue;
      if (thinned && setting.trains && std::string(kind) != "kill" && ++number % 3 != 0) continue;
      points.push_back({i + 1, kind});
    }
  }
  return points;
}

std::vector<Point> share_of_all(const Setting& setting, const std::vector<Operation>& undisturbed, long part,
                                long parts) {
  const auto points = all_points(setting, undisturbed, true);
  std::vector<Point> share;
  for (std::size_t i = part; i < points.size(); i += parts) share.push_back(points[i]);
  return share;
}

// Prints the strata too: whoever starts the parts sees whether all of them together have every one.
std::vector<Point> share_of_sample(const Setting& setting, const std::vector<Operation>& undisturbed, long part,
                                   long parts, unsigned long seed) {
  std::map<std::string, std::vector<Point>> strata;
  for (const auto& point : all_points(setting, undisturbed, false)) {
    const auto& operation = undisturbed[point.at - 1];
    if (setting.prepared && operation.path.rfind("run/checkpoints/", 0) == 0) break;
    strata[stratum_of(point, operation)].push_back(point);
  }
  std::vector<Point> share;
  std::mt19937_64 random(6 * seed + 2 * setting.ranks + setting.asynchronous);
  for (const auto& [stratum, all] : strata) {
    const bool taken =
        std::stol(sha256_of(fmt::format("{} {}", seed, stratum)).substr(0, 7), nullptr, 16) % parts == part;
    if (taken) share.push_back(all[random() % all.size()]);
    std::printf("%s: %s\n", taken ? "taken" : "left", stratum.c_str());
  }
  return share;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) return 2;
  const Setting setting{std::string(argv[1]) != "saver", std::string(argv[1]) == "prepared", argv[2],
                        std::atoi(argv[3]), std::string(argv[4]) == "async"};
  std::ofstream(setting.experiment()) << kExperiment;
  const auto clear = [&] {
    fs::remove_all(setting.work());
    fs::create_directories(setting.checkpoints());
    if (setting.trains) fs::remove_all(setting.run());
    if (setting.prepared)
      run::prepare_run_directory(setting.run(), {{"job.sbatch", "#!/bin/bash\n"}, {"submission.json", "{}\n"}});
  };
  clear();
  if (setting.trains) {  // what libraries make ready at their first use, the children inherit
    const int terminal = ::dup(STDOUT_FILENO), nowhere = ::open("/dev/null", O_WRONLY);
    ::dup2(nowhere, STDOUT_FILENO);
    ::dup2(nowhere, STDERR_FILENO);
    train(setting, 1);
    std::fflush(stdout);
    ::dup2(terminal, STDOUT_FILENO);
    clear();
  }
  if (const int status = run_in_child(setting, setting.ranks, 0, ""); status != 0) {
    std::printf("the undisturbed run ended with %d:\n%s", status, contents(setting.output()).c_str());
    return 1;
  }
  const auto expected = outcome(setting);
  const auto undisturbed = operations(setting.log());
  if (const std::string what = unflushed(undisturbed); !what.empty()) {
    std::printf("BROKEN: %s, %d ranks, %s: %s\n", argv[1], setting.ranks, argv[4], what.c_str());
    return 1;
  }
  std::map<std::string, long> counts;
  std::map<std::string, long> left;
  const long part = std::atol(argv[5]), parts = std::atol(argv[6]);
  const auto points = argc == 7
                          ? share_of_all(setting, undisturbed, part, parts)
                          : share_of_sample(setting, undisturbed, part, parts, std::strtoul(argv[7], nullptr, 10));
  for (const auto& [at, kind] : points) {
    clear();
    const int ended = run_in_child(setting, setting.ranks, at, kind);
    const std::string first_output = contents(setting.output());
    const bool kills = kind.rfind("kill", 0) == 0;
    const auto by_log = committed(setting, kind);
    std::set<uint64_t> on_disk;
    for (const auto& found : checkpoints::find_checkpoints(setting.checkpoints())) on_disk.insert(found.step);
    const int ranks = 1 + static_cast<int>((setting.ranks + at) % 3);
    const int resumed = run_in_child(setting, ranks, 0, "");
    auto found = outcome(setting);

    std::vector<std::string> problems;
    if (ended == -SIGKILL && kills)
      ++counts["killed"];
    else if (ended == 0)
      ++counts["finished all the same"];
    else if (ended == 74 && !kills)
      ++counts["stopped"];
    else
      problems.push_back("the run ended with " + std::to_string(ended) + ": " + first_output);
    if (resumed != 0)
      problems.push_back("resuming on " + std::to_string(ranks) + " ranks ended with " + std::to_string(resumed) +
                         ": " + contents(setting.output()));
    for (const uint64_t step : by_log)
      if (on_disk.count(step) == 0)
        problems.push_back("the committed checkpoint of step " + std::to_string(step) + " is gone");
    const auto from = resumed_from(setting);
    const uint64_t newest = on_disk.empty() ? 0 : *on_disk.rbegin();
    if (from && *from != newest)
      problems.push_back("it went on from step " + std::to_string(*from) + ", the newest checkpoint is of step " +
                         std::to_string(newest));
    for (const auto& [what, text] : expected)
      // A save that failed is not done again once training is over.
      if (found[what] != text && !(ended == 0 && !kills && what.rfind("checkpoint ", 0) == 0))
        problems.push_back(what + ":\n" + found[what] + "\ninstead of\n" + text);
    counts["broken"] += problems.empty() ? 0 : 1;
    for (const auto& problem : problems) {
      const auto& operation = undisturbed[at - 1];
      std::printf("BROKEN: %s at operation %ld of %zu (%s %s), %s, %d ranks, %s: %s\n", kind.c_str(), at,
                  undisturbed.size(), operation.name.c_str(), operation.path.c_str(), argv[1], setting.ranks, argv[4],
                  problem.c_str());
    }
    for (const auto& name : leftovers(setting)) ++left[without_drawn_ends(name)];
    std::fflush(stdout);
  }
  std::printf("%s, %d ranks, %s: %zu operations, %zu points", argv[1], setting.ranks, argv[4], undisturbed.size(),
              points.size());
  for (const auto& [what, count] : counts) std::printf(", %ld %s", count, what.c_str());
  for (const auto& [name, count] : left) std::printf("; %ld hidden leftovers %s*", count, name.c_str());
  std::printf("\n");
  return counts["broken"] > 0;
}
