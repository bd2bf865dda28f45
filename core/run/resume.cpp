#include "core/run/resume.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "core/config/fields.h"
#include "core/config/stored.h"
#include "core/models/spec.h"
#include "core/run/kept_encoders.h"

namespace muster::run {
namespace {

constexpr uint64_t kLargestText = 64 << 20;  // bytes

// What a run without a checkpoint is known by.
void read_beginning(const std::string& run_directory, const Provenance& now, std::string& config_text,
                    Provenance& before) {
  config_text = read_file(run_directory + "/config.txtpb", kLargestText);
  before = now;
  const std::string file = run_directory + "/environment.json";
  before.set_data_sha256(require_text(require_json_object(file), "data.sha256", file));
}

// Whether the path of an encoder only says in another way where the same one is.
bool is_same_encoder(const config::Encoder& before, const config::Encoder& now, const std::string& run_directory) {
  std::error_code ignored;
  const auto place = [&](const config::Encoder& encoder) {
    return std::filesystem::weakly_canonical(encoder.path(), ignored);
  };
  return (!place(now).empty() && place(before) == place(now)) || is_recorded_encoder(now, run_directory);
}

std::string lines(const std::vector<std::string>& items) { return fmt::format("\n  {}", fmt::join(items, "\n  ")); }

}  // namespace

ResumePoint find_resume_point(const std::string& run_directory, const config::Experiment& now,
                              const Provenance& provenance, bool force, distributed::Communicator& communicator,
                              Progress& progress) {
  ResumePoint point;
  std::vector<std::string> damaged;
  point.loaded = checkpoints::load_newest_checkpoint(run_directory + "/checkpoints", communicator, damaged);
  for (const auto& reason : damaged) progress.line("warning: a damaged checkpoint is left out: " + reason);

  distributed::run_on_all_ranks(communicator, [&] {
    std::string config_text, source = run_directory + "/config.txtpb";
    Provenance before;
    if (point.loaded) {
      const auto& checkpoint = point.loaded->checkpoint;
      source = checkpoint.path;
      config_text = checkpoint.info.config;
      point.state = from_bytes(checkpoint.info.training_state, source);
      before = point.state.provenance();
      if (point.state.steps_done() != checkpoint.info.step)
        throw Error(ExitCode::kBadData, fmt::format("{}: it is of step {}, but its training state of step {}", source,
                                                    checkpoint.info.step, point.state.steps_done()));
    } else {
      read_beginning(run_directory, provenance, config_text, before);
    }
    const auto experiment = config::parse_stored_experiment(config_text, source);
    std::vector<std::string> forbidden = changes_of_results(before, provenance);
    if (const auto changed = models::spec_of(now).changed_since; changed != nullptr)
      if (const std::string what = changed(now, before.results_version()); !what.empty())
        forbidden.push_back(
            fmt::format("muster, which has changed {}: {} -> {}", what, before.muster(), provenance.muster()));
    const bool only_data = forbidden.size() == 1 && before.data_sha256() != provenance.data_sha256();
    bool config_changed = false;
    for (const auto& difference : config::differences(experiment, now)) {
      const bool free = config::may_change_in_a_run(difference.path, now);
      config_changed = config_changed || !free;
      const std::string name = difference.path.substr(difference.path.find('.') + 1);
      const bool is_encoder = difference.path.rfind("encoders[", 0) == 0;
      if (is_encoder && name == "path") {
        const int place = config::split_index(difference.path.substr(0, difference.path.find('.'))).second;
        // Rank 0 tells and records what has changed.
        if (communicator.rank() != 0 || is_same_encoder(experiment.encoders(place), now.encoders(place), run_directory))
          continue;
      }
      if (point.loaded && is_encoder)
        for (const char* const shaping : {"modality", "train", "top_layers", "layer", "weighted_layers"})
          if (name == shaping || name == difference.path)
            throw Error(ExitCode::kBadConfig,
                        fmt::format("{}: {} is {} in this run and cannot become {}, also not with --force: what is "
                                    "trained has moments and a place in its checkpoints. Begin a new run in another "
                                    "--run-dir, perhaps with --init-from its weights",
                                    source, difference.path, difference.before, difference.after));
      (free ? point.changes : forbidden)
          .push_back(fmt::format("{}: {} -> {}", difference.path, difference.before, difference.after));
    }
    // Not judged: they make no difference beyond rounding, which is what was promised without `reproducible`.
    if (before.muster() != provenance.muster())
      point.changes.push_back(fmt::format("muster: {} -> {}", before.muster(), provenance.muster()));
    if (before.torch() != provenance.torch())
      point.changes.push_back(fmt::format("torch: {} -> {}", before.torch(), provenance.torch()));
    if (!forbidden.empty() && !force)
      throw Error(only_data && !config_changed ? ExitCode::kBadData : ExitCode::kBadConfig,
                  fmt::format("{}: this run cannot continue as the same run, because its results would change. "
                              "Different are:{}\nUndo the changes, or begin a new run in another --run-dir (perhaps "
                              "with --init-from its weights), or add --force: the run then continues, and "
                              "environment.json lists these changes.",
                              source, lines(forbidden)));
    for (const auto& change : forbidden) point.changes.push_back("forced: " + change);
  });
  const bool changes_length = std::any_of(point.changes.begin(), point.changes.end(), [](const std::string& change) {
    return change.rfind("training.epochs", 0) == 0 || change.rfind("training.max_steps", 0) == 0;
  });
  if (changes_length && now.optimizer().schedule() == config::Optimizer::COSINE)
    progress.line(
        "note: optimizer.schedule is COSINE, which ends at the last step: from here on the learning rate is that of a "
        "run of the new length");
  if (!point.changes.empty()) progress.line("changed since the run began or was last saved:" + lines(point.changes));
  return point;
}

}  // namespace muster::run
