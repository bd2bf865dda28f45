#include "core/run/training_state.h"

#include <torch/version.h>

#include <fmt/format.h>

#include "base/error.h"
#include "core/run/training_state.pb.h"

namespace muster::run {
namespace {

const std::string kFirstMoment = "optimizer.exp_avg.", kSecondMoment = "optimizer.exp_avg_sq.",
                  kSteps = "optimizer.step", kBest = "best.";

void put_back(const std::map<std::string, at::Tensor>& tensors, const std::string& name, const std::string& source,
              at::Tensor target) {
  const auto found = tensors.find(name);
  if (found == tensors.end() || found->second.sizes() != target.sizes() ||
      found->second.scalar_type() != target.scalar_type())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: tensor \"{}\" is {}; the model is not the one that was saved", source, name,
                            found == tensors.end() ? "missing" : "of another shape or dtype"));
  const at::NoGradGuard no_gradient;
  target.copy_(found->second);
}

void put_back_all(const std::map<std::string, at::Tensor>& tensors, const std::string& prefix,
                  const std::string& source, const models::Parameters& parameters, const at::Tensor& flat) {
  for (const auto& [name, part] : parameters.parts_of(flat)) put_back(tensors, prefix + name, source, part);
}

}  // namespace

Provenance provenance_of_this_job(const std::string& data_sha256, const std::string& numerics) {
  return {data_sha256, kResultsVersion, fmt::format("{} ({})", MUSTER_VERSION, MUSTER_GIT_COMMIT), TORCH_VERSION,
          numerics};
}

std::vector<std::string> changes_of_results(const Provenance& before, const Provenance& now) {
  std::vector<std::string> changes;
  const auto compare = [&](const std::string& what, const std::string& old_text, const std::string& new_text) {
    if (old_text != new_text) changes.push_back(fmt::format("{}: {} -> {}", what, old_text, new_text));
  };
  compare("the data (SHA-256)", before.data_sha256, now.data_sha256);
  if (before.results_version != now.results_version)
    changes.push_back(
        fmt::format("muster, whose results have changed in between: {} -> {}", before.muster, now.muster));
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
    throw Error(ExitCode::kBadData, source + ": its training state cannot be read; was it written by muster train?");
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

std::vector<checkpoints::NamedTensor> tensors_of(const models::Parameters& parameters, const optim::AdamW& optimizer,
                                                 const std::vector<batch::FeatureMoments>& moments,
                                                 const std::vector<std::string>& modalities, const at::Tensor& best) {
  std::vector<checkpoints::NamedTensor> tensors =
      weight_tensors(parameters.parts_of(parameters.values()), moments, modalities);
  const auto add = [&](const std::string& prefix, const at::Tensor& flat) {
    for (const auto& [name, part] : parameters.parts_of(flat)) tensors.push_back({prefix + name, part});
  };
  add(kFirstMoment, optimizer.first_moment());
  add(kSecondMoment, optimizer.second_moment());
  tensors.push_back({kSteps, optimizer.steps()});
  if (best.defined()) add(kBest, best);
  return tensors;
}

bool belongs_to_weights(const std::string& name) {
  return name.rfind("optimizer.", 0) != 0 && name.rfind(kBest, 0) != 0;
}

Weights weights_in(const std::map<std::string, at::Tensor>& tensors, const std::string& source,
                   const models::DataShape& shape) {
  std::map<std::string, at::Tensor> own;
  for (const auto& [name, tensor] : tensors)
    if (belongs_to_weights(name)) own.emplace(name, tensor);
  return weights_from(own, {}, source, shape);
}

void restore_optimizer(const std::map<std::string, at::Tensor>& tensors, const std::string& source,
                       const models::Parameters& parameters, optim::AdamW& optimizer) {
  put_back_all(tensors, kFirstMoment, source, parameters, optimizer.first_moment());
  put_back_all(tensors, kSecondMoment, source, parameters, optimizer.second_moment());
  put_back(tensors, kSteps, source, optimizer.steps());
}

at::Tensor best_in(const std::map<std::string, at::Tensor>& tensors, const std::string& source,
                   const models::Parameters& parameters) {
  const at::Tensor best = at::zeros_like(parameters.values());
  put_back_all(tensors, kBest, source, parameters, best);
  return best;
}

}  // namespace muster::run
