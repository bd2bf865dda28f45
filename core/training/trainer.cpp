#include "core/training/trainer.h"

#include <algorithm>

#include "core/training/training_run.h"
#include "distributed/watchdog.h"

namespace muster::training {

void train(const config::LoadedExperiment& loaded, const TrainOptions& options,
           distributed::Communicator& communicator) {
  const auto& deadlines = loaded.experiment.deadlines();
  distributed::set_deadlines({deadlines.setup(), deadlines.step(), deadlines.save(), deadlines.evaluation()});
  Compute compute;
  distributed::run_on_all_ranks(communicator, [&] {
    config::with_places(loaded, [&] { compute = prepare_compute(loaded.experiment.training(), communicator); });
  });
  const auto gpus = join_gpus(compute, communicator);
  TrainingRun(loaded, options, gpus ? *gpus : communicator, compute, nullptr).run();
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
  const auto& deadlines = loaded.experiment.deadlines();
  distributed::set_deadlines({deadlines.setup(), deadlines.step(), deadlines.save(), deadlines.evaluation()});
  const auto& training = loaded.experiment.training();
  Compute compute = compute_;
  distributed::run_on_all_ranks(group_, [&] {
    config::with_places(loaded, [&] { compute.microbatches = microbatches_of(training, group_.size()); });
  });
  compute.bf16 = training.precision() == config::Training::BF16;
  const TrialSettings trial{datasets_, splits == Splits::kValidationAndTest, on_validation};
  TrainingRun(loaded, options, gpus_ ? *gpus_ : group_, compute, &trial).run();
}

}  // namespace muster::training
