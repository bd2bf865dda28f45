#include "core/training/trainer.h"

#include "core/training/training_run.h"
#include "distributed/watchdog.h"

namespace muster::training {

void train(const config::LoadedExperiment& loaded, const TrainOptions& options, distributed::Communicator& communicator) {
  const auto& deadlines = loaded.experiment.deadlines();
  distributed::set_deadlines({deadlines.setup(), deadlines.step(), deadlines.save(), deadlines.evaluation()});
  Compute compute;
  distributed::together(communicator, [&] {
    config::with_places(loaded, [&] { compute = prepare_compute(loaded.experiment.training(), communicator); });
  });
  const auto gpus = join_gpus(compute, communicator);
  TrainingRun(loaded, options, gpus ? *gpus : communicator, compute).run();
}

}  // namespace muster::training
