#include "core/training/conclude.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoints/fingerprint.h"
#include "core/run/weights.h"
#include "core/training/evaluation.h"

namespace muster::training {
namespace {

// Writes the last weights, makes the best ones the model's, and writes those where no validation has. Returns the
// fingerprint of the last.
std::string keep_weights(TrainingRun& run) {
  auto& state = run.state;
  auto& parameters = run.model->parameters();
  const bool all_files = run.policy.writes_all_files;
  std::string last_fingerprint;
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (!run.directory) return;
    run.directory->require_held();
    const auto tensors =
        run::weight_tensors(parameters.parts_of(parameters.values()), run.moments, run.data.shape.modalities);
    last_fingerprint = checkpoints::fingerprint(tensors);
    if (all_files)
      run::write_weights(run.directory->file("weights/last.safetensors"), tensors,
                         run::weights_metadata(run.config.name(), state.steps_done, run.data.index()));
  });
  const bool validated = run.best_values.defined();
  if (validated) {
    const at::NoGradGuard no_gradient;
    parameters.values().copy_(run.best_values);
  } else {
    state.best_step = state.steps_done;  // nothing says which weights are best: the last ones
  }
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (run.directory && !(validated && all_files)) run.write_best_weights(parameters.values(), state.best_step);
  });
  return last_fingerprint;
}

nlohmann::json result_of(const TrainingRun& run, const std::string& last_fingerprint, const nlohmann::json& facts) {
  const auto& state = run.state;
  nlohmann::json result;
  result["best"] = {
      {"step", state.best_step},
      {"epoch", state.best_epoch},
      {"selected_by", run.split.valid.empty() ? "last step (there is no validation split)" : "valid/" + run.select_by},
      {"value", std::isfinite(state.best_value) ? nlohmann::json(state.best_value) : nlohmann::json()},
      {"fingerprint", state.best_fingerprint}};
  result["last"] = {{"step", state.steps_done}, {"fingerprint", last_fingerprint}};
  result["stopped_early"] = state.stopped_early;
  if (const auto& note = models::spec_of(run.config).note; !note.empty()) result["model_note"] = note;
  result["skipped_steps"] = state.skipped_steps;
  result["parameters"] = run.model->parameters().count();
  result["world_size"] = run.communicator.size();
  result["seed"] = run.config.seed();
  result.update(facts);
  return result;
}

}  // namespace

void conclude(TrainingRun& run, const run::Evaluation* best_evaluation, const nlohmann::json& facts) {
  const auto& index = run.data.index();
  const auto& state = run.state;
  const bool all_files = run.policy.writes_all_files;
  const std::string last_fingerprint = keep_weights(run);
  nlohmann::json result = result_of(run, last_fingerprint, facts);
  run::Report report;
  for (const auto& [name, samples] :
       {std::pair{std::string("valid"), run.split.valid}, std::pair{std::string("test"), run.split.test}}) {
    if (samples.empty()) continue;
    const bool known = name == "valid" && best_evaluation;
    const auto evaluation = known ? *best_evaluation
                                  : evaluate(*run.step, *run.reader, run.communicator, samples,
                                             run.config.evaluation().batch_size(), run.config.seed(), true);
    const auto baseline = baseline_metrics(index, run.split.train, samples);
    result[name] = run::to_json(evaluation);
    result["trivial_baselines"][name] = run::to_json(baseline);
    report.columns.push_back({name, evaluation.metrics});
    report.columns.push_back({name + " baseline", baseline});
    report.confusion = evaluation.confusion;
    distributed::run_on_all_ranks(run.communicator, [&, &name = name] {
      if (run.directory && (all_files || name == "test"))
        run.directory->write("predictions-" + name + ".csv", run::predictions_csv(index, evaluation.predictions));
    });
  }
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (run.directory) run.directory->write("result.json", result.dump(2) + "\n");
  });
  if (!run.is_main() || !run.policy.shows_progress) return;

  report.name = run.config.name();
  report.best_step = state.best_step;
  report.last_step = state.steps_done;
  report.stopped_early = state.stopped_early;
  report.skipped_steps = state.skipped_steps;
  report.class_names = index.class_names;
  report.regression = index.task == data::Task::kRegression;
  report.default_metric = models::spec_of(run.config).default_metric(index.task);
  report.note = models::spec_of(run.config).note;
  report.temperature = run.model->temperature();
  report.run_directory = run.directory->path();
  report.checkpoints = facts.at("checkpoints");
  run::print_report(report);
}

}  // namespace muster::training
