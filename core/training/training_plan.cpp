#include "core/training/training_plan.h"

#include "core/batch/sampler.h"
#include "base/error.h"

namespace muster::training {
namespace {

batch::Sampling sampling_of(config::Training::Sampling sampling) {
  switch (sampling) {
    case config::Training::CLASS_BALANCED:
      return batch::Sampling::kClassBalanced;
    case config::Training::SEQUENTIAL:
      return batch::Sampling::kSequential;
    default:
      return batch::Sampling::kShuffle;
  }
}

}  // namespace

TrainingPlan::TrainingPlan(const config::LoadedExperiment& loaded, const data::DatasetIndex& index,
                           std::vector<int64_t> train)
    : config_(loaded.experiment), train_(std::move(train)) {
  for (const int64_t sample : train_) labels_.push_back(index.labels[sample]);
  const auto& training = config_.training();
  const uint64_t batch_size = training.batch_size();
  steps_per_epoch_ = training.drop_last() ? train_.size() / batch_size : (train_.size() + batch_size - 1) / batch_size;
  if (steps_per_epoch_ == 0)
    throw SharedError(
        ExitCode::kBadConfig,
        config::where(loaded, "training.drop_last") + ": training.drop_last leaves no batch: there are " +
            std::to_string(train_.size()) + " training samples and batch_size is " + std::to_string(batch_size));
  const uint64_t by_epochs = steps_per_epoch_ * training.epochs();
  total_steps_ = by_epochs == 0              ? training.max_steps()
                 : training.max_steps() == 0 ? by_epochs
                                             : std::min(training.max_steps(), by_epochs);
}

std::vector<int64_t> TrainingPlan::samples(uint64_t step) {
  const int64_t epoch = epoch_of(step);
  if (epoch != ordered_epoch_) {
    order_ = batch::epoch_order(train_, labels_, sampling_of(config_.training().sampling()), config_.seed(),
                                static_cast<uint32_t>(epoch - 1));
    ordered_epoch_ = epoch;
  }
  const uint64_t batch_size = config_.training().batch_size();
  const uint64_t begin = step % steps_per_epoch_ * batch_size;
  return {order_.begin() + static_cast<int64_t>(begin),
          order_.begin() + static_cast<int64_t>(std::min<uint64_t>(begin + batch_size, order_.size()))};
}

}  // namespace muster::training
