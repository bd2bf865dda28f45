#include "core/run/training_state.h"

#include <torch/version.h>

#include <fmt/format.h>

#include "base/error.h"

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
  Provenance provenance;
  provenance.set_data_sha256(data_sha256);
  provenance.set_results_version(kResultsVersion);
  provenance.set_muster(fmt::format("{} ({})", MUSTER_VERSION, MUSTER_GIT_COMMIT));
  provenance.set_torch(TORCH_VERSION);
  provenance.set_numerics(numerics);
  return provenance;
}

std::vector<std::string> changes_of_results(const Provenance& before, const Provenance& now) {
  std::vector<std::string> changes;
  const auto compare = [&](const char* what, const std::string& old_text, const std::string& new_text) {
    if (old_text != new_text) changes.push_back(fmt::format("{}: {} -> {}", what, old_text, new_text));
  };
  compare("the data (SHA-256)", before.data_sha256(), now.data_sha256());
  if (before.results_version() < config::kOldestContinuedVersion || before.results_version() > now.results_version())
    changes.push_back(
        fmt::format("muster, whose results have changed in between: {} -> {}", before.muster(), now.muster()));
  compare("the numerics", before.numerics(), now.numerics());
  return changes;
}

std::string to_bytes(TrainingState state, const Provenance& provenance) {
  *state.mutable_provenance() = provenance;
  return state.SerializeAsString();
}

TrainingState from_bytes(const std::string& bytes, const std::string& source) {
  TrainingState state;
  if (!state.ParseFromString(bytes) || !state.has_provenance())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: its training state cannot be read; was it written by muster train?", source));
  return state;
}

std::vector<checkpoints::NamedTensor> tensors_of(const models::Parameters& parameters, const optim::AdamW& optimizer,
                                                 const std::vector<batch::FeatureMoments>& moments,
                                                 const std::vector<std::string>& modalities, const at::Tensor& best) {
  std::vector<checkpoints::NamedTensor> tensors =
      weight_tensors(parameters.all_parts(parameters.values()), moments, modalities);
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
  for (const auto& tensor : tensors)
    if (belongs_to_weights(tensor.first)) own.insert(tensor);
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
