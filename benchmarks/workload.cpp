#include "benchmarks/workload.h"

#include <google/protobuf/text_format.h>

#include <numeric>
#include <random>
#include <stdexcept>

#include "core/config/load.h"
#include "core/models/make_model.h"

namespace muster::benchmarks {
namespace {

struct Shape {
  std::string modality;
  int64_t dim, shortest, longest;
};

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
      index_.ids.push_back("sample" + std::to_string(i));
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

}  // namespace

Workload make_workload(const std::string& name, int64_t batch_size) {
  std::vector<Shape> shapes;
  if (name == "foal_net")
    shapes = {{"audio", 1024, 50, 299}, {"vision", 768, 30, 180}};
  else if (name == "miar_aligned")
    shapes = {{"text", 768, 5, 50}, {"audio", 5, 5, 50}, {"vision", 20, 5, 50}};
  else if (name == "miar_unaligned")
    shapes = {{"text", 768, 5, 50}, {"audio", 5, 38, 375}, {"vision", 20, 50, 500}};
  else
    throw std::invalid_argument("no workload is called " + name + "; there are foal_net, miar_aligned, miar_unaligned");

  const config::Experiment experiment = config::default_experiment(name == "foal_net" ? "foal_net" : "miar");

  Workload workload;
  workload.name = name;
  workload.dataset = std::make_unique<RandomDataset>(shapes, batch_size, name == "foal_net");
  models::DataShape shape;
  std::vector<int64_t> modalities(shapes.size());
  std::iota(modalities.begin(), modalities.end(), 0);
  for (const auto& one : shapes) {
    shape.modalities.push_back(one.modality);
    shape.dims.push_back(one.dim);
  }
  shape.outputs = name == "foal_net" ? 4 : 1;
  workload.model = models::make_model(experiment, shape);
  workload.reader = std::make_unique<batch::BatchReader>(
      *workload.dataset, modalities, std::vector<batch::FeatureMoments>(), workload.model->parameters().dtype());
  workload.optimizer = std::make_unique<optim::AdamW>(workload.model->parameters(), optim::AdamWOptions());
  workload.samples.resize(batch_size);
  std::iota(workload.samples.begin(), workload.samples.end(), 0);
  return workload;
}

void train_step(Workload& workload, training::Step& step, uint32_t number) {
  step.train(step.read(workload.samples, number), 1);
  workload.optimizer->step(1e-4);
  workload.model->project_parameters();
}

}  // namespace muster::benchmarks
