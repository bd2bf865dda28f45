#include "core/training/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "base/json.h"
#include "base/print.h"
#include "base/text.h"
#include "checkpoints/fingerprint.h"
#include "checkpoints/retention.h"
#include "core/run/checkpointing.h"
#include "core/run/weights.h"
#include "core/training/frozen_features.h"
#include "core/training/loop.h"
#include "core/training/setup.h"
#include "distributed/watchdog.h"

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
        run::weight_tensors(parameters.all_parts(parameters.values()), run.moments, run.data.shape.modalities);
    last_fingerprint = checkpoints::fingerprint(tensors);
    if (all_files)
      run::write_weights(run.directory->file("weights/last.safetensors"), tensors,
                         run::weights_metadata(run.config.name(), state.steps_done(), run.data.index()));
  });
  const bool validated = run.best_values.defined();
  if (validated) {
    const at::NoGradGuard no_gradient;
    parameters.values().copy_(run.best_values);
  } else {
    state.mutable_best()->set_step(state.steps_done());  // nothing says which weights are best: the last ones
  }
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (run.directory && !(validated && all_files)) run.write_best_weights(parameters.values(), state.best().step());
  });
  return last_fingerprint;
}

nlohmann::json result_of(const TrainingRun& run, const std::string& last_fingerprint, const nlohmann::json& facts) {
  const auto& state = run.state;
  nlohmann::json result;
  result["best"] = {
      {"step", state.best().step()},
      {"epoch", state.best().epoch()},
      {"selected_by", run.split.valid.empty() ? "last step (there is no validation split)" : "valid/" + run.select_by},
      {"value", run.best_values.defined() ? number_or_null(state.best().value()) : nlohmann::json()},
      {"fingerprint", state.best().fingerprint()}};
  result["last"] = {{"step", state.steps_done()}, {"fingerprint", last_fingerprint}};
  result["stopped_early"] = state.stopped_early();
  if (const auto& note = models::spec_of(run.config).note; !note.empty()) result["model_note"] = note;
  result["skipped_steps"] = state.skipped_steps();
  result["parameters"] = run.model->parameters().count();
  result["world_size"] = run.communicator.size();
  result["seed"] = run.config.seed();
  result["dropped_samples"] = run.data.dropped;
  result.update(facts);
  return result;
}

// Where a result is not better than what needs no input. One metric may deceive: the median of the labels minimises
// MAE, and a model that has learnt to rank samples may be worse by it.
std::string warning_of(const TrainingRun& run, const std::vector<run::ResultColumn>& columns) {
  const run::ResultColumn &result = columns[columns.size() - 2], &baseline = columns.back();
  const std::string& name = models::spec_of(run.config).default_metric(run.data.index().task);
  std::vector<std::string> better;
  for (const auto& [metric, value] : result.metrics) {
    const double trivial = metrics::metric_value(baseline.metrics, metric);
    if (metrics::higher_is_better(metric) ? value > trivial : value < trivial) better.push_back(metric);
  }
  if (std::count(better.begin(), better.end(), name)) return "";
  return fmt::format(
      "NOT better than the baseline: {} on {} is {:.4f}, that of the trivial prediction {:.4f}. {}\n", name,
      result.title, metrics::metric_value(result.metrics, name), metrics::metric_value(baseline.metrics, name),
      better.empty() ? "Nothing was learnt that generalises." : fmt::format("Better by: {}.", join(better)));
}

// What a finished run tells a person, on standard output. checkpoints: as Checkpointing::summary().
void print_report(const TrainingRun& run, const std::vector<run::ResultColumn>& columns,
                  const std::vector<std::vector<int64_t>>& confusion, const nlohmann::json& checkpoints) {
  const auto& state = run.state;
  const auto& index = run.data.index();
  std::string text = fmt::format("\n{}: best weights of step {} of {}{}\n", run.config.name(), state.best().step(),
                                 state.steps_done(), state.stopped_early() ? " (stopped early)" : "");
  if (state.skipped_steps() > 0) text += fmt::format("{} steps were skipped as non-finite\n", state.skipped_steps());
  if (!columns.empty()) text += fmt::format("\n{}\n", run::results_table(columns));
  if (run.data.dropped > 0)
    text += fmt::format("{} of all samples were left out: a modality is missing\n", run.data.dropped);
  if (!confusion.empty()) text += run::confusion_table(index.class_names, confusion) + "\n";
  if (!columns.empty())
    text += fmt::format("baseline: what predicting the training {} for every sample scores\n{}",
                        index.task == data::Task::kRegression       ? "median"
                        : index.task == data::Task::kClassification ? "majority class"
                                                                    : "majority of each class",
                        warning_of(run, columns));
  if (const auto& note = models::spec_of(run.config).note; !note.empty()) text += note + "\n";
  if (const auto temperature = run.model->temperature(); temperature && *temperature <= 0)
    text += fmt::format(
        "the learnt temperature of the best weights is {:g}: as a divisor it flips the sign of every similarity\n",
        *temperature);
  const int64_t saved = checkpoints["saved"], failed = checkpoints["failed"];
  if (saved + failed > 0)
    text += fmt::format("checkpoints: {} saved{}; training stood still for {:.3f} s, at most {:.3f} s at a time\n",
                        saved, failed > 0 ? fmt::format(", {} FAILED (logs/checkpoints.jsonl)", failed) : "",
                        checkpoints["stall_seconds"].get<double>(), checkpoints["longest_stall_seconds"].get<double>());
  std::printf("%srun directory: %s\n", text.c_str(), run.directory->path().c_str());
}

// Of a run that has left its result. On rank 0.
void thin_out_checkpoints(TrainingRun& run) {
  try {
    const auto retention = run::retention_when_finished(run.config.checkpoints());
    for (const auto& old :
         checkpoints::superfluous(run.directory->file("checkpoints"), retention, run.state.steps_done()))
      checkpoints::remove_checkpoint(old.path);
  } catch (const Error& error) {
    run.progress.line(fmt::format("warning: old checkpoints could not be removed: {}", error.what()));
  }
}

// After the last step: puts the best weights (without validation: the last ones) into the model, evaluates it on
// validation and test split, and writes weights, predictions, and at the very end result.json, by which a run is known
// to be finished. Prints the table. best_evaluation: of the best weights on the validation split; nullptr: not known.
// facts: what else result.json is to say, "checkpoints" among it. Collective.
void conclude(TrainingRun& run, const run::Evaluation* best_evaluation, const nlohmann::json& facts) {
  const auto& index = run.data.index();
  const std::string last_fingerprint = keep_weights(run);
  nlohmann::json result = result_of(run, last_fingerprint, facts);
  std::vector<run::ResultColumn> columns;  // per split: its result, then its trivial baseline
  std::vector<std::vector<int64_t>> confusion;
  for (const auto& [name, samples] :
       {std::pair{std::string("valid"), run.split.valid}, std::pair{std::string("test"), run.split.test}}) {
    if (samples.empty()) continue;
    const bool known = name == "valid" && best_evaluation;
    const auto evaluation = known ? *best_evaluation
                                  : evaluate(*run.step, *run.reader, run.communicator, samples,
                                             run.config.evaluation().batch_size(), run.config.seed(), true);
    const auto baseline = baseline_metrics(index, run.split.train, samples);
    result[name] = run::to_json(evaluation);
    result["trivial_baselines"]["prediction"] = trivial_prediction(index, run.split.train);
    result["trivial_baselines"][name] = run::to_json(baseline);
    columns.push_back({name, evaluation.metrics});
    columns.push_back({name + " baseline", baseline});
    confusion = evaluation.confusion;
    distributed::run_on_all_ranks(run.communicator, [&, &name = name] {
      if (run.directory)
        run.directory->write(fmt::format("predictions-{}.csv", name),
                             run::predictions_csv(index, evaluation.predictions));
    });
  }
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (!run.directory) return;
    run.directory->write("result.json", result.dump(2) + "\n");
    thin_out_checkpoints(run);
  });
  remove_frozen_features(run);
  if (run.is_main() && run.policy.shows_progress) print_report(run, columns, confusion, facts.at("checkpoints"));
}

// One run from checked inputs to result.json.
void train_one(const config::LoadedExperiment& loaded, const TrainOptions& options, const RunPolicy& policy,
               DatasetCache& datasets, distributed::Communicator& communicator, const Compute& compute) {
  TrainingRun run(loaded, options, policy, datasets, communicator, compute);
  prepare(run);
  run.progress.line(summary(run));
  if (options.dry_run) {
    if (run.is_main())
      std::printf("dry run: the experiment and its data are in order; nothing was trained or written\n");
    return;
  }
  if (is_concluded(run)) {
    remove_frozen_features(run);  // where the job that has concluded it was killed right then
    if (run.is_main() && policy.shows_progress)
      print_out("{} is finished already{}: see its result.json\n", options.run_directory,
                run.state.steps_done() > 0 ? fmt::format(", after {} steps", run.state.steps_done()) : "");
    return;
  }
  open_for_writing(run);
  use_frozen_features(run);
  TrainingLoop loop(run);
  loop.run();
  const distributed::PhaseScope phase(distributed::Phase::kEvaluation);
  conclude(run, loop.best_evaluation(),
           {{"seconds", run.seconds()}, {"checkpoints", loop.checkpoint_summary()}, {"resumed", run.resumes}});
}

void set_deadlines(const config::Experiment& experiment) {
  const auto& deadlines = experiment.deadlines();
  distributed::set_deadlines({deadlines.setup(), deadlines.step(), deadlines.save(), deadlines.evaluation()});
}

}  // namespace

void train(const config::LoadedExperiment& loaded, const TrainOptions& options,
           distributed::Communicator& communicator) {
  set_deadlines(loaded.experiment);
  Compute compute;
  distributed::run_on_all_ranks(communicator, [&] {
    config::with_places(loaded, [&] { compute = prepare_compute(loaded.experiment.training(), communicator); });
  });
  const auto gpus = join_gpus(compute, communicator);
  DatasetCache datasets;
  train_one(loaded, options, {}, datasets, gpus ? *gpus : communicator, compute);
}

InProcessTrainer::InProcessTrainer(const config::Training& training, distributed::Communicator& world,
                                   distributed::Communicator& group)
    : group_(group) {
  config::Training whole = training;
  whole.set_microbatches(std::max(training.microbatches(),
                                  static_cast<uint32_t>(world.size())));  // each group has its own, which train() sets
  compute_ = prepare_compute(whole, world);
  gpus_ = join_gpus(compute_, group);
}

void InProcessTrainer::train(const config::LoadedExperiment& loaded, const TrainOptions& options, Splits splits,
                             const std::function<void(const nlohmann::json&)>& on_validation) {
  set_deadlines(loaded.experiment);
  const auto& training = loaded.experiment.training();
  Compute compute = compute_;
  distributed::run_on_all_ranks(group_, [&] {
    config::with_places(loaded, [&] { compute.microbatches = microbatches_of(training, group_.size()); });
  });
  compute.bf16 = training.precision() == config::Training::BF16;
  const RunPolicy policy{/*shows_progress=*/false, /*writes_all_files=*/false,
                         /*sees_test_split=*/splits == Splits::kValidationAndTest, on_validation};
  train_one(loaded, options, policy, datasets_, gpus_ ? *gpus_ : group_, compute);
}

}  // namespace muster::training
