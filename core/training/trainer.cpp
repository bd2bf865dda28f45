#include "core/training/trainer.h"

#include <algorithm>

#include <cstdio>

#include "core/training/conclude.h"
#include "core/training/loop.h"
#include "core/training/setup.h"
#include "distributed/watchdog.h"

namespace muster::training {
namespace {

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
    if (run.is_main() && policy.shows_progress)
      std::printf("%s is finished already, after %lu steps: see its result.json\n", options.run_directory.c_str(),
                  run.state.steps_done);
    return;
  }
  open_for_writing(run);
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

InProcessTrainer::~InProcessTrainer() = default;

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
