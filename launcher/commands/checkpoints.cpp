#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/json.h"
#include "base/print.h"
#include "base/text.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/fingerprint.h"
#include "checkpoints/retention.h"
#include "core/config/stored.h"
#include "core/run/checkpointing.h"
#include "core/run/progress.h"
#include "core/run/run_lock.h"
#include "core/run/training_state.h"
#include "launcher/commands/commands.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using checkpoints::FoundCheckpoint;

bool is_checkpoint(const std::string& path) { return fs::exists(path + "/MANIFEST.pb"); }

// The checkpoints of a run directory, newest first, or the one that `path` is.
std::vector<FoundCheckpoint> checkpoints_at(const std::string& path) {
  if (is_checkpoint(path)) return {{path, checkpoints::read_manifest(path).info.step}};
  if (!fs::exists(path + "/config.txtpb"))
    throw Error(ExitCode::kUsage, fmt::format("{}: is neither the directory of a run nor a checkpoint", path));
  return checkpoints::find_checkpoints(path + "/checkpoints");
}

void list(const std::string& path, bool json) {
  nlohmann::json rows = nlohmann::json::array();
  const auto found = checkpoints_at(path);
  if (!json) print_out("{:<10} {:>6} {:>6} {:>12}  {}\n", "step", "epoch", "ranks", "size", "score");
  for (const auto& [checkpoint_path, step] : found) {
    nlohmann::json row = {{"path", checkpoint_path}, {"step", step}};
    try {
      const auto checkpoint = checkpoints::read_manifest(checkpoint_path);
      const auto& score = checkpoint.info.score;
      row.update({{"epoch", checkpoint.info.epoch}, {"ranks", checkpoint.world_size}, {"bytes", checkpoint.bytes}});
      if (!score.name.empty()) row["score"] = {{"name", score.name}, {"value", number_or_null(score.value)}};
      if (!json)
        print_out("{:<10} {:>6} {:>6} {:>12}  {}\n", step, checkpoint.info.epoch, checkpoint.world_size,
                  size_text(checkpoint.bytes),
                  score.name.empty() ? "-" : fmt::format("{} {:.6f}", score.name, score.value));
    } catch (const Error& error) {
      row["damaged"] = error.what();
      if (!json) print_out("{:<10} DAMAGED: {}\n", step, error.what());
    }
    rows.push_back(row);
  }
  if (json) std::printf("%s\n", rows.dump(2).c_str());
  if (!json && found.empty()) std::printf("no checkpoint\n");
}

void verify(const std::string& path) {
  const auto found = checkpoints_at(path);
  int damaged = 0;
  for (const auto& checkpoint : found) {
    run::Progress progress(true);
    try {
      const auto verified = checkpoints::verify_checkpoint(checkpoint.path, [&](uint64_t done, uint64_t all) {
        progress.work(fmt::format("reading step {}, MiB", checkpoint.step), static_cast<int64_t>(done >> 20),
                      static_cast<int64_t>(all >> 20));
      });
      progress.clear();
      print_out("step {}: whole, {} files, {}\n", checkpoint.step, verified.files.size(), size_text(verified.bytes));
    } catch (const Error& error) {
      progress.clear();
      print_out("step {}: DAMAGED: {}\n", checkpoint.step, error.what());
      ++damaged;
    }
  }
  if (found.empty()) std::printf("no checkpoint\n");
  if (damaged > 0)
    throw Error(ExitCode::kBadData,
                fmt::format("{} of {} checkpoints are damaged; resuming skips them and uses the newest intact one",
                            damaged, found.size()));
}

std::string fingerprint_of(const std::string& path, const std::string& which) {
  if (!is_checkpoint(path)) {
    const std::string file = fs::is_directory(path) ? fmt::format("{}/weights/{}.safetensors", path, which) : path;
    return checkpoints::fingerprint(checkpoints::read_safetensors(file));
  }
  const auto alone = distributed::make_single_process_communicator();
  std::vector<checkpoints::NamedTensor> weights;
  for (const auto& [name, tensor] : checkpoints::load_checkpoint(path, *alone).tensors)
    if (run::belongs_to_weights(name)) weights.push_back({name, tensor});
  return checkpoints::fingerprint(weights);
}

struct PruneArguments {
  std::string path;
  int64_t keep_last = -1, keep_best = -1, keep_every = -1;
  bool dry_run = false;
};

void prune(const PruneArguments& arguments) {
  auto retention =
      run::retention_of(config::load_stored_experiment(arguments.path + "/config.txtpb").experiment.checkpoints());
  if (arguments.keep_last >= 0) retention.keep_last = static_cast<uint32_t>(arguments.keep_last);
  if (arguments.keep_best >= 0) retention.keep_best = static_cast<uint32_t>(arguments.keep_best);
  if (arguments.keep_every >= 0) retention.keep_every = static_cast<uint64_t>(arguments.keep_every);
  std::optional<run::RunLock> lock;  // a running job prunes by itself
  if (!arguments.dry_run) lock.emplace(arguments.path);
  // Nothing is removed in favour of a damaged one.
  const std::string folder = arguments.path + "/checkpoints";
  uint64_t newest = 0;
  for (const auto& found : checkpoints::find_checkpoints(folder)) {
    try {
      newest = checkpoints::verify_checkpoint(found.path).info.step;
      break;
    } catch (const Error&) {
    }
  }
  const auto superfluous = checkpoints::superfluous(folder, retention, newest);
  for (const auto& checkpoint : superfluous) {
    print_out("{} {}\n", arguments.dry_run ? "would remove" : "removing", checkpoint.path);
    if (!arguments.dry_run) checkpoints::remove_checkpoint(checkpoint.path);
  }
  if (superfluous.empty()) std::printf("nothing to remove\n");
}

}  // namespace

void add_checkpoints_command(CLI::App& parent) {
  auto* checkpoints =
      parent.add_subcommand("checkpoints", "List, check, compare and remove checkpoints and saved weights");
  checkpoints->require_subcommand(1);
  struct Arguments {
    std::string path;
    std::string which = "best";
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  auto* listing = checkpoints->add_subcommand("list", "The checkpoints of a run, newest first");
  listing->add_option("RUN_DIR", arguments->path, "Run directory, or one checkpoint")->required();
  listing->add_flag("--json", arguments->json, "Print JSON");
  listing->callback([arguments] { list(arguments->path, arguments->json); });

  auto* verification = checkpoints->add_subcommand(
      "verify", "Read every byte of them and compare checksums (exit 65 if one is damaged)");
  verification->add_option("RUN_DIR", arguments->path, "Run directory, or one checkpoint")->required();
  verification->callback([arguments] { verify(arguments->path); });

  auto* fingerprint =
      checkpoints->add_subcommand("fingerprint", "Print one SHA-256 over the weights: equal for the same model only");
  fingerprint->add_option("PATH", arguments->path, "Run directory, checkpoint or .safetensors file")->required();
  fingerprint->add_option("--weights", arguments->which, "Of a run directory: best (default) or last")
      ->check(CLI::IsMember({"best", "last"}));
  fingerprint->callback(
      [arguments] { std::printf("%s\n", fingerprint_of(arguments->path, arguments->which).c_str()); });

  auto pruned = std::make_shared<PruneArguments>();
  auto* pruning =
      checkpoints->add_subcommand("prune", "Remove the checkpoints that no rule keeps; by default the run's own rules");
  pruning->add_option("RUN_DIR", pruned->path, "Run directory")->required();
  pruning->add_option("--keep-last", pruned->keep_last, "Keep this many of the newest")->check(CLI::Range(1, 1000000));
  pruning->add_option("--keep-best", pruned->keep_best, "Keep this many of the best")->check(CLI::NonNegativeNumber);
  pruning
      ->add_option("--keep-every", pruned->keep_every,
                   "Keep those whose step is a multiple of this; 0: none for that reason")
      ->check(CLI::NonNegativeNumber);
  pruning->add_flag("--dry-run", pruned->dry_run, "Only say what would be removed");
  pruning->callback([pruned] { prune(*pruned); });
}

}  // namespace muster::launcher
