#include "core/batch/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "core/random/philox.h"

namespace muster::batch {
namespace {

std::vector<int64_t> shuffled(const std::vector<int64_t>& samples, uint64_t seed, uint32_t epoch) {
  // Keyed by dataset row, not by place in the list: the same sample keeps its key whatever else is in the split.
  std::vector<std::pair<uint64_t, int64_t>> keyed;
  keyed.reserve(samples.size());
  for (const int64_t sample : samples)
    keyed.emplace_back(random::bits64(seed, {static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32),
                                             random::kShuffle, epoch}),
                       sample);
  std::sort(keyed.begin(), keyed.end());
  std::vector<int64_t> order;
  order.reserve(samples.size());
  for (const auto& entry : keyed) order.push_back(entry.second);
  return order;
}

std::vector<int64_t> class_balanced(const std::vector<int64_t>& samples, const std::vector<double>& labels,
                                    uint64_t seed, uint32_t epoch) {
  std::map<int64_t, std::vector<int64_t>> by_class;
  for (size_t i = 0; i < samples.size(); ++i) by_class[static_cast<int64_t>(labels[i])].push_back(samples[i]);
  std::vector<const std::vector<int64_t>*> classes;
  for (const auto& entry : by_class) classes.push_back(&entry.second);
  std::vector<int64_t> order;
  order.reserve(samples.size());
  for (size_t draw = 0; draw < samples.size(); ++draw) {
    const auto words = random::philox4x32(
        seed, {static_cast<uint32_t>(draw), static_cast<uint32_t>(draw >> 32), random::kClassBalanced, epoch});
    // Multiply-shift maps 32 uniform bits to [0, n) with a bias below n / 2^32.
    const auto pick = [](uint32_t word, size_t n) { return static_cast<size_t>((uint64_t{word} * n) >> 32); };
    const auto& members = *classes[pick(words[0], classes.size())];
    order.push_back(members[pick(words[1], members.size())]);
  }
  return order;
}

}  // namespace

std::vector<int64_t> epoch_order(const std::vector<int64_t>& samples, const std::vector<double>& labels,
                                 config::Training::Sampling sampling, uint64_t seed, uint32_t epoch) {
  if (sampling == config::Training::CLASS_BALANCED) return class_balanced(samples, labels, seed, epoch);
  return sampling == config::Training::SEQUENTIAL ? samples : shuffled(samples, seed, epoch);
}

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
        fmt::format("{}: training.drop_last leaves no batch: there are {} training samples and batch_size is {}",
                    config::where(loaded, "training.drop_last"), train_.size(), batch_size));
  const uint64_t by_epochs = steps_per_epoch_ * training.epochs();
  total_steps_ = by_epochs == 0              ? training.max_steps()
                 : training.max_steps() == 0 ? by_epochs
                                             : std::min(training.max_steps(), by_epochs);
}

std::vector<int64_t> TrainingPlan::samples(uint64_t step) {
  const int64_t epoch = epoch_of(step);
  if (epoch != ordered_epoch_) {
    order_ =
        epoch_order(train_, labels_, config_.training().sampling(), config_.seed(), static_cast<uint32_t>(epoch - 1));
    ordered_epoch_ = epoch;
  }
  const uint64_t batch_size = config_.training().batch_size();
  const uint64_t begin = step % steps_per_epoch_ * batch_size;
  return {order_.begin() + static_cast<int64_t>(begin),
          order_.begin() + static_cast<int64_t>(std::min<uint64_t>(begin + batch_size, order_.size()))};
}

}  // namespace muster::batch
