#include "core/run/training_state.h"

#include <torch/version.h>

#include "core/run/training_state.pb.h"
#include "base/error.h"

namespace muster::run {

Provenance provenance_of_this_job(const std::string& data_sha256, const std::string& numerics) {
  return {data_sha256, kResultsVersion, std::string(MUSTER_VERSION) + " (" + MUSTER_GIT_COMMIT + ")", TORCH_VERSION,
          numerics};
}

std::vector<std::string> changes_of_results(const Provenance& before, const Provenance& now) {
  std::vector<std::string> changes;
  const auto compare = [&](const std::string& what, const std::string& old_text, const std::string& new_text) {
    if (old_text != new_text) changes.push_back(what + ": " + old_text + " -> " + new_text);
  };
  compare("the data (SHA-256)", before.data_sha256, now.data_sha256);
  if (before.results_version != now.results_version)
    changes.push_back("muster, whose results have changed in between: " + before.muster + " -> " + now.muster);
  compare("the numerics", before.numerics, now.numerics);
  return changes;
}

std::string to_bytes(const TrainingState& state, const Provenance& provenance) {
  stored::TrainingState out;
  out.set_steps_done(state.steps_done);
  out.set_skipped_steps(state.skipped_steps);
  out.set_skipped_in_a_row(state.skipped_in_a_row);
  if (state.has_best) {
    auto& best = *out.mutable_best();
    best.set_value(state.best_value);
    best.set_step(state.best_step);
    best.set_epoch(state.best_epoch);
    best.set_fingerprint(state.best_fingerprint);
  }
  out.set_evaluations_without_improvement(state.evaluations_without_improvement);
  out.set_validated_step(state.validated_step);
  out.set_stopped_early(state.stopped_early);
  out.set_seconds(state.seconds);
  auto& origin = *out.mutable_provenance();
  origin.set_data_sha256(provenance.data_sha256);
  origin.set_results_version(provenance.results_version);
  origin.set_muster(provenance.muster);
  origin.set_torch(provenance.torch);
  origin.set_numerics(provenance.numerics);
  return out.SerializeAsString();
}

void from_bytes(const std::string& bytes, const std::string& source, TrainingState& state, Provenance& provenance) {
  stored::TrainingState in;
  if (!in.ParseFromString(bytes) || !in.has_provenance())
    throw Error(ExitCode::kBadData,
                             source + ": its training state cannot be read; was it written by muster train?");
  state = {};
  state.steps_done = in.steps_done();
  state.skipped_steps = in.skipped_steps();
  state.skipped_in_a_row = in.skipped_in_a_row();
  state.has_best = in.has_best();
  if (state.has_best) {
    state.best_value = in.best().value();
    state.best_step = in.best().step();
    state.best_epoch = in.best().epoch();
    state.best_fingerprint = in.best().fingerprint();
  }
  state.evaluations_without_improvement = in.evaluations_without_improvement();
  state.validated_step = in.validated_step();
  state.stopped_early = in.stopped_early();
  state.seconds = in.seconds();
  const auto& origin = in.provenance();
  provenance = {origin.data_sha256(), origin.results_version(), origin.muster(), origin.torch(), origin.numerics()};
}

}  // namespace muster::run
