// reproducible [--workload NAME] [--batch N] [--microbatches V] [--repeats N] [--default-only]: the price of
// bit-exactness. Times whole training steps in the default mode (one microbatch per rank, one all-reduce) and in
// reproducible mode (V microbatches, sums in one fixed tree), alternately in one run, and prints both medians and their
// ratio. Under mpirun the ranks share the batch.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <numeric>
#include <random>

#include "benchmarks/measure.h"
#include "core/config/load.h"
#include "core/models/make_model.h"
#include "core/optim/adamw.h"
#include "core/training/compute.h"
#include "core/training/step.h"

namespace {

using namespace muster;

struct Shape {
  std::string modality;
  int64_t dim, shortest, longest;  // features, and frames of a sample
};

// The shapes that each model's field trains on: IEMOCAP with WavLM-large and CLIP-large features; MOSI with the same
// number of frames for all modalities of a sample, and with the frames that each has.
const std::map<std::string, std::vector<Shape>> kWorkloads{
    {"foal_net", {{"audio", 1024, 50, 299}, {"vision", 768, 30, 180}}},
    {"miar_aligned", {{"text", 768, 5, 50}, {"audio", 5, 5, 50}, {"vision", 20, 5, 50}}},
    {"miar_unaligned", {{"text", 768, 5, 50}, {"audio", 5, 38, 375}, {"vision", 20, 50, 500}}}};

// In memory: what one training step costs, without files.
class RandomDataset final : public data::Dataset {
 public:
  // Lengths within a sample go together, as in real recordings.
  RandomDataset(const std::vector<Shape>& shapes, int64_t samples, bool classes) {
    std::mt19937 random(1);
    std::uniform_real_distribution<double> share(0, 1);
    std::vector<double> durations(samples);
    for (auto& duration : durations) duration = share(random);
    index_.task = classes ? data::Task::kClassification : data::Task::kRegression;
    if (classes) index_.class_names = {"happy", "neutral", "sad", "angry"};
    for (int64_t i = 0; i < samples; ++i) {
      index_.ids.push_back(fmt::format("sample{}", i));
      index_.labels.push_back(classes ? static_cast<double>(i % 4) : 6 * share(random) - 3);
    }
    for (const auto& shape : shapes) {
      data::Modality modality{shape.modality, shape.dim, {0}};
      for (const double duration : durations)
        modality.offsets.push_back(
            modality.offsets.back() + shape.shortest +
            static_cast<int64_t>(duration * static_cast<double>(shape.longest - shape.shortest)));
      at::manual_seed(1);
      values_.push_back(at::randn({modality.offsets.back(), shape.dim}));
      index_.modalities.push_back(std::move(modality));
    }
  }
  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    const int64_t dim = index_.modalities[modality].dim;
    std::copy_n(values_[modality].const_data_ptr<float>() + first * dim, count * dim, out);
  }
  std::string content_hash() const override { return "random"; }
  std::string source() const override { return "random"; }

 private:
  std::vector<at::Tensor> values_;
};

std::unique_ptr<models::Model> make_model(const std::string& workload) {
  const bool classes = workload == "foal_net";
  models::DataShape shape;
  for (const auto& one : kWorkloads.at(workload)) {
    shape.modalities.push_back(one.modality);
    shape.dims.push_back(one.dim);
  }
  shape.outputs = classes ? 4 : 1;
  shape.task = classes ? data::Task::kClassification : data::Task::kRegression;
  return models::make_model(config::default_experiment(classes ? "foal_net" : "miar"), shape);
}

std::vector<int64_t> first_numbers(int64_t count) {
  std::vector<int64_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

struct Settings {
  int64_t batch = 32, microbatches = 8;
  int repeats = 7;
  bool default_only = false;
};

// Trains with the defaults of the experiment file, all losses and dropout on.
void measure(const std::string& name, const Settings& settings, distributed::Communicator& communicator) {
  const RandomDataset dataset(kWorkloads.at(name), settings.batch, name == "foal_net");
  const auto model = make_model(name);
  const batch::BatchReader reader(dataset, first_numbers(static_cast<int64_t>(dataset.index().modalities.size())), {},
                                  model->parameters().dtype());
  optim::AdamW optimizer(model->parameters(), {});
  training::Step usual(*model, reader, communicator, {});
  training::Step exact(*model, reader, communicator, {settings.microbatches, true, false});
  // One whole optimizer step: forward, backward, sum over ranks, AdamW.
  const auto timed = [&](training::Step& step, uint32_t number) {
    communicator.all_gather_bytes("");  // start together
    return benchmarks::seconds([&] {
      step.train(step.read(first_numbers(settings.batch), number), 1);
      optimizer.step(1e-4);
      model->project_parameters();
      communicator.all_gather_bytes("");  // the slowest rank counts
    });
  };
  std::vector<double> usual_seconds, exact_seconds;
  for (int repeat = -1; repeat < settings.repeats; ++repeat) {
    const uint32_t number = static_cast<uint32_t>(repeat + 1);
    at::globalContext().setDeterministicAlgorithms(false, false);  // prepare_compute() has asked for it
    const double first = timed(usual, number);
    at::globalContext().setDeterministicAlgorithms(true, false);
    const double second = settings.default_only ? 0 : timed(exact, number);
    if (repeat < 0) continue;  // warm-up
    usual_seconds.push_back(first);
    exact_seconds.push_back(second);
  }
  if (communicator.rank() != 0) return;
  const double a = benchmarks::median(usual_seconds), b = benchmarks::median(exact_seconds);
  if (settings.default_only)
    std::printf("%s %.6f\n", name.c_str(), a);
  else
    std::printf("%-16s %14.1f %18.1f %8.3f\n", name.c_str(), 1e3 * a, 1e3 * b, b / a);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The price of bit-exactness: training steps in default and in reproducible mode");
  std::vector<std::string> names{"foal_net", "miar_unaligned", "miar_aligned"};
  Settings settings;
  app.add_option("--workload", names, "foal_net, miar_aligned, miar_unaligned (repeatable; default: all)")
      ->check(CLI::IsMember(kWorkloads));
  app.add_option("--batch", settings.batch, "Samples in the global batch");
  app.add_option("--microbatches", settings.microbatches, "V of reproducible mode");
  app.add_option("--repeats", settings.repeats, "Timed steps of each mode");
  app.add_flag("--default-only", settings.default_only, "Time the default mode only and print seconds per step");
  CLI11_PARSE(app, argc, argv);

  const auto communicator = distributed::connect();
  config::Training training;
  training.set_reproducible(!settings.default_only);
  training.set_microbatches(static_cast<uint32_t>(settings.microbatches));
  training.set_threads(1);
  const auto compute = training::prepare_compute(training, *communicator);
  if (communicator->rank() == 0 && !settings.default_only) {
    std::printf("%d ranks, 1 thread each; global batch %ld; V = %ld; %s\n", communicator->size(), settings.batch,
                settings.microbatches, compute.numerics.c_str());
    std::printf("%-16s %14s %18s %8s\n", "workload", "default ms", "reproducible ms", "ratio");
  }
  for (const auto& name : names) measure(name, settings, *communicator);
}
