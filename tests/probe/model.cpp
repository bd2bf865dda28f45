// probe model INPUT.safetensors CONFIG.json OUTPUT.safetensors: runs a model, its losses, gradients and optimizer on a
// case that a Python oracle has made. The contract is in tests/reference/golden.py. Under mpirun the ranks share the
// batch; rank 0 writes.
#include <google/protobuf/text_format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "checkpoints/safetensors.h"
#include "core/config/load.h"
#include "core/models/make_model.h"
#include "core/optim/adamw.h"
#include "core/training/step.h"
#include "distributed/communicator.h"
#include "tests/helpers/parameters.h"

namespace {

using namespace muster;

// The case's batch as a dataset in memory.
class CaseDataset final : public data::Dataset {
 public:
  CaseDataset(const std::map<std::string, at::Tensor>& tensors, const std::vector<std::string>& names,
              int64_t classes) {
    const at::Tensor labels = tensors.at("batch.labels").to(at::kDouble);
    index_.task = labels.dim() == 2 ? data::Task::kMultilabel
                  : classes > 0     ? data::Task::kClassification
                                    : data::Task::kRegression;
    for (int64_t c = 0; c < classes; ++c) index_.class_names.push_back("class" + std::to_string(c));
    index_.labels.assign(labels.const_data_ptr<double>(), labels.const_data_ptr<double>() + labels.numel());
    for (int64_t i = 0; i < labels.size(0); ++i) index_.ids.push_back("sample" + std::to_string(i));
    for (const auto& name : names) {
      values_.push_back(tensors.at("batch." + name + ".values").to(at::kFloat).contiguous());
      const at::Tensor offsets = tensors.at("batch." + name + ".offsets");
      data::Modality modality;
      modality.name = name;
      modality.dim = values_.back().size(1);
      modality.offsets.assign(offsets.const_data_ptr<int64_t>(), offsets.const_data_ptr<int64_t>() + offsets.numel());
      index_.modalities.push_back(std::move(modality));
    }
  }
  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    const int64_t dim = values_[modality].size(1);
    std::copy_n(values_[modality].const_data_ptr<float>() + first * dim, count * dim, out);
  }
  std::string content_hash() const override { return "case"; }
  std::string source() const override { return "case"; }

 private:
  std::vector<at::Tensor> values_;
};

config::Experiment experiment_of(const nlohmann::json& config) {
  config::Experiment experiment;
  google::protobuf::TextFormat::Parser parser;
  if (!parser.ParseFromString(config.at("experiment").get<std::string>(), &experiment))
    throw std::runtime_error("bad experiment text");
  *experiment.mutable_training() = config::default_experiment("").training();
  experiment.mutable_training()->set_precision(config.value("precision", "FP64") == "FP64" ? config::Training::FP64
                                                                                           : config::Training::FP32);
  experiment.set_seed(config.at("seed").get<uint64_t>());
  return experiment;
}

}  // namespace

int model_probe(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto communicator = distributed::connect();
  const auto input = checkpoints::read_safetensors(argv[1]);
  const auto config = nlohmann::json::parse(std::ifstream(argv[2]));
  const auto names = config.at("modalities").get<std::vector<std::string>>();
  const int64_t classes = config.at("classes");
  const CaseDataset dataset(input.tensors, names, classes);
  const auto experiment = experiment_of(config);

  models::DataShape shape;
  std::vector<int64_t> modalities;
  for (size_t m = 0; m < names.size(); ++m) {
    shape.modalities.push_back(names[m]);
    shape.dims.push_back(dataset.index().modalities[m].dim);
    modalities.push_back(static_cast<int64_t>(m));
  }
  shape.outputs = classes > 0 ? classes : 1;
  shape.task = dataset.index().task;
  const auto model = models::make_model(experiment, shape);
  auto& parameters = model->parameters();
  std::map<std::string, at::Tensor> start;
  for (const auto& [name, tensor] : input.tensors)
    if (name.rfind("parameters.", 0) == 0) start.emplace(name.substr(11), tensor);
  parameters.load(start, argv[1]);

  const batch::BatchReader reader(dataset, modalities, {}, parameters.dtype());
  const auto& options = experiment.optimizer();
  optim::AdamW optimizer(parameters, {options.beta1(), options.beta2(), options.epsilon(), options.weight_decay()});
  training::Step step(*model, reader, *communicator,
                      {config.at("microbatches"), config.value("reproducible", false), false,
                       config.value("recompute_encoders", false)});
  std::vector<int64_t> samples(dataset.index().size());
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<int64_t>(i);
  auto batch = step.read(samples);

  std::vector<checkpoints::NamedTensor> output;
  std::vector<double> losses;
  int64_t bytes_sent = 0;  // in the last step
  for (uint32_t s = 0; s < config.at("steps").get<uint32_t>(); ++s) {
    batch.number = s;
    const int64_t before = communicator->bytes_sent();
    const auto outcome = step.train(batch, experiment.seed());
    bytes_sent = communicator->bytes_sent() - before;
    losses.push_back(outcome.loss());
    const at::Tensor outputs = communicator->all_gather_rows(outcome.outputs.contiguous(), batch.global.row_counts);
    if (s == 0) {
      output.push_back({"outputs", outputs});
      output.push_back({"loss.total", outcome.total()});
      for (const auto& [name, value] : outcome.terms())
        output.push_back({"loss." + name, at::scalar_tensor(value, at::kDouble)});
      for (const auto& [name, gradient] : parameters.parts_of(parameters.gradients()))
        output.push_back({"gradients." + name, gradient.clone()});
    }
    optim::clip_gradients(parameters, optim::l2_norm(parameters.gradients()), options.clip_norm());
    optimizer.step(options.learning_rate());
    model->project_parameters();
  }
  output.push_back({"losses", at::tensor(losses, at::kDouble)});
  for (const auto& [name, tensor] : copies_of(parameters)) output.push_back({"parameters." + name, tensor});
  if (communicator->rank() == 0)
    checkpoints::write_safetensors(argv[3], output, {{"bytes_sent", std::to_string(bytes_sent)}});
  return 0;
}
