// probe encoder CONFIG INPUT.safetensors OUTPUT.safetensors: runs a pretrained encoder. CONFIG: text of a
// muster.config.Encoder. Input: "values" [rows, dim] (float64 or float32, which becomes the parameters' dtype, or
// int64), "offsets" and "batch_index" (int64), "gradient" [frames, dim] of what the encoder gives (may be missing), and
// metadata "seed", "step", "training" ("1": dropout, masking), "bf16" ("1": under bfloat16 autocast), "init_seed"
// (present: nothing is loaded; for a path without weights). Output: "frames", "offsets", "grad.<parameter>" of every
// trained parameter, "value.<parameter>" of all, "scale.<parameter>": its learning rate as a share of the optimizer's,
// 0 where it is not trained.
#include <google/protobuf/text_format.h>

#include <stdexcept>

#include "base/error.h"
#include "checkpoints/safetensors.h"
#include "core/models/encoders/make_encoder.h"
#include "core/training/autocast.h"

int encoder_probe(int argc, char** argv) {
  using namespace muster;
  if (argc != 4) return 2;
  config::Encoder config;
  if (!google::protobuf::TextFormat::ParseFromString(argv[1], &config)) throw std::runtime_error("bad encoder text");
  const auto input = checkpoints::read_safetensors(argv[2]);
  const auto meta = [&](const std::string& name, const std::string& fallback) {
    const auto found = input.metadata.find(name);
    return found == input.metadata.end() ? fallback : found->second;
  };
  const auto numbers = [&](const std::string& name) {
    const at::Tensor tensor = input.tensors.at(name);
    return std::vector<int64_t>(tensor.const_data_ptr<int64_t>(), tensor.const_data_ptr<int64_t>() + tensor.numel());
  };
  try {
    const auto encoder = models::make_encoder(config, 0, 0);
    const batch::Ragged raw{input.tensors.at("values"), numbers("offsets")};
    const at::ScalarType dtype = raw.values.scalar_type() == at::kFloat ? at::kFloat : at::kDouble;
    const std::string dtype_given = meta("dtype", "");
    models::Parameters parameters(encoder->specs(), models::DecayScope::kMatrices,
                                  dtype_given == "float32" ? at::kFloat : dtype, std::stoull(meta("init_seed", "1")));
    if (input.metadata.count("init_seed") == 0) encoder->load(parameters);
    const models::StepContext step{std::stoull(meta("seed", "1")), static_cast<uint32_t>(std::stoul(meta("step", "0"))),
                                   meta("training", "0") == "1"};
    batch::Ragged frames;
    {
      const training::Autocast autocast(meta("bf16", "0") == "1", c10::kCPU);
      frames = encoder->encode(parameters, raw, numbers("batch_index"), step);
      frames.values = frames.values.to(parameters.dtype());  // as a step takes them
    }
    std::vector<checkpoints::NamedTensor> output{{"frames", frames.values.detach()},
                                                 {"offsets", at::tensor(frames.offsets, at::kLong)}};
    if (const auto gradient = input.tensors.find("gradient"); gradient != input.tensors.end()) {
      frames.values.backward(gradient->second);
      parameters.finish_gradients();
      for (const auto& [name, part] : parameters.parts_of(parameters.gradients()))
        output.push_back({"grad." + name, part});
    }
    for (const auto& spec : parameters.specs()) {
      output.push_back({"value." + spec.name, parameters[spec.name].detach()});
      output.push_back(
          {"scale." + spec.name, at::scalar_tensor(spec.trained ? spec.learning_rate_scale : 0, at::kDouble)});
    }
    checkpoints::write_safetensors(argv[3], output, {});
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
