#include "core/training/finalize.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "checkpoints/fingerprint.h"
#include "core/run/weights.h"
#include "core/training/evaluation.h"
#include "core/training/report.h"
#include "core/training/results.h"

namespace muster::training {

void conclude(const TrainedRun& run, run::TrainingState& state, const std::string& select_by, const at::Tensor& best,
              nlohmann::json facts) {
  auto& parameters = run.model.parameters();
  const auto& index = run.data.index();
  const auto tensors = [&] {
    return run::weight_tensors(parameters.parts_of(parameters.values()), run.moments, run.data.shape.modalities);
  };
  const auto write = [&](const std::string& name, uint64_t step) {
    return run::write_weights(run.directory->file(name), tensors(),
                              run::weights_metadata(run.config.name(), step, index));
  };
  std::string last_fingerprint;
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (!run.directory) return;
    run.directory->require_held();
    last_fingerprint =
        run.is_trial ? checkpoints::fingerprint(tensors()) : write("weights/last.safetensors", state.steps_done);
    // Without a validation split nothing says which weights are best: the last ones.
    if (!best.defined()) state.best_fingerprint = write("weights/best.safetensors", state.steps_done);
  });
  if (best.defined()) {
    const at::NoGradGuard no_gradient;
    parameters.values().copy_(best);
    distributed::run_on_all_ranks(run.communicator, [&] {
      if (run.directory && run.is_trial) state.best_fingerprint = write("weights/best.safetensors", state.best_step);
    });
  } else {
    state.best_step = state.steps_done;
  }

  Report report;
  nlohmann::json result;
  for (const auto& [name, samples] :
       {std::pair{std::string("valid"), run.split.valid}, std::pair{std::string("test"), run.split.test}}) {
    if (samples.empty()) continue;
    const bool known = name == "valid" && run.best_evaluation;
    const auto evaluation = known ? *run.best_evaluation
                                  : evaluate(run.step, run.reader, run.communicator, samples,
                                             run.config.evaluation().batch_size(), run.config.seed(), true);
    const auto floor = baseline_metrics(index, run.split.train, samples);
    result[name] = to_json(evaluation);
    result["trivial_baselines"][name] = to_json(floor);
    report.columns.push_back({name, evaluation.metrics});
    report.columns.push_back({name + " floor", floor});
    report.confusion = evaluation.confusion;
    distributed::run_on_all_ranks(run.communicator, [&, &name = name] {
      if (!run.directory || (run.is_trial && name == "valid")) return;
      run.directory->write("predictions-" + name + ".csv", predictions_csv(index, evaluation.predictions));
    });
  }
  result["best"] = {{"step", state.best_step},
                    {"epoch", state.best_epoch},
                    {"selected_by", "valid/" + select_by},
                    {"value", std::isfinite(state.best_value) ? nlohmann::json(state.best_value) : nlohmann::json()},
                    {"fingerprint", state.best_fingerprint}};
  if (run.split.valid.empty()) result["best"]["selected_by"] = "last step (there is no validation split)";
  result["last"] = {{"step", state.steps_done}, {"fingerprint", last_fingerprint}};
  result["stopped_early"] = state.stopped_early;
  const models::ModelSpec& model = models::spec_of(run.config);
  if (!model.note.empty()) result["model_note"] = model.note;
  result["skipped_steps"] = state.skipped_steps;
  result["parameters"] = parameters.count();
  result["world_size"] = run.communicator.size();
  result["seed"] = run.config.seed();
  result.update(facts);
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (run.directory) run.directory->write("result.json", result.dump(2) + "\n");
  });
  if (!run.directory || run.is_trial) return;

  report.name = run.config.name();
  report.best_step = state.best_step;
  report.last_step = state.steps_done;
  report.stopped_early = state.stopped_early;
  report.skipped_steps = state.skipped_steps;
  report.class_names = index.class_names;
  report.regression = index.task == data::Task::kRegression;
  report.default_metric = model.default_metric(index.task);
  report.model_note = model.note;
  report.temperature = run.model.temperature();
  report.run_directory = run.directory->path();
  report.checkpoints = facts["checkpoints"];
  print_report(report);
}

}  // namespace muster::training
