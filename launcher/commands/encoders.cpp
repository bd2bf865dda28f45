#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/print.h"
#include "base/text.h"
#include "checkpoints/safetensors.h"
#include "core/models/encoders/make_encoder.h"
#include "launcher/commands/commands.h"
#include "launcher/work/output_file.h"
#include "launcher/work/seed_option.h"

namespace muster::launcher {
namespace {

namespace fs = std::filesystem;
using models::Encoder;
using models::ParameterSpec;
using models::PretrainedFolder;

constexpr const char* kModality = "init";  // of an encoder that no experiment names
constexpr uint64_t kLargestConfig = 64 << 20;

int64_t values_of(const ParameterSpec& spec) {
  const auto bytes = checkpoints::bytes_of_shape(at::kByte, spec.shape);
  if (!bytes) throw Error(ExitCode::kBadData, fmt::format("'{}' would have too many values", spec.name));
  return static_cast<int64_t>(*bytes);
}

config::Encoder frozen_settings() {
  config::Encoder settings;
  settings.set_modality(kModality);
  settings.set_train(config::Encoder::FROZEN);  // no gradients are needed
  return settings;
}

std::unique_ptr<Encoder> encoder_of(const std::shared_ptr<const PretrainedFolder>& folder) {
  return make_encoder(frozen_settings(), 0, 0, folder);
}

// One tensor is in memory at a time. As transformers writes it, which refuses files that do not say "pt".
void write_random_weights(const std::string& path, const Encoder& encoder, uint64_t seed, const std::string& output) {
  const std::string prefix = fmt::format("encoders.{}.", kModality);
  const auto specs = encoder.specs();
  checkpoints::SafetensorsHeader header{{}, {{"format", "pt"}}};
  std::map<std::string, const ParameterSpec*> by_name;
  for (const auto& spec : specs) by_name.emplace(spec.name.substr(prefix.size()), &spec);
  std::vector<std::string> order;
  uint64_t end = 0;
  for (const auto& [name, spec] : by_name) {
    const auto bytes = checkpoints::bytes_of_shape(at::kFloat, spec->shape);
    if (!bytes || __builtin_add_overflow(end, *bytes, &end))
      throw Error(ExitCode::kBadData, fmt::format("the weights would be too large (at '{}')", name));
    header.tensors[name] = {at::kFloat, spec->shape, end - *bytes, end};
    order.push_back(name);
  }
  if (const auto space = free_space(parent_of(path)); space && end > space->free)
    throw Error(ExitCode::kIo,
                fmt::format("{}: the weights would have {}, but {} are free there", printable(output),
                            size_text(static_cast<double>(end)), size_text(static_cast<double>(space->free))));
  const std::string head = checkpoints::safetensors_head(header, order);
  AtomicFile file(path, head.size() + end);
  file.write(head);
  for (const auto& [name, spec] : by_name) {
    const models::Parameters one({*spec}, models::DecayScope::kAll, at::kFloat, seed);
    const at::Tensor values = one[spec->name].detach().contiguous();
    file.write(std::string_view(static_cast<const char*>(values.const_data_ptr()), values.nbytes()));
  }
  file.commit();
}

void copy_file(const std::string& from, const std::string& to) {
  write_file_atomically(to, read_file(from, kLargestConfig));
}

void init_encoder(const std::string& config, uint64_t seed, const std::string& output) {
  const auto refuse = [&](const std::string& why) {
    throw Error(ExitCode::kUsage, fmt::format("{} is not written: {}. Give another output", printable(output), why));
  };
  if (output.empty()) throw Error(ExitCode::kUsage, "the output (-o) has no name");
  require_output_folder(output, "");
  std::error_code ignored;
  if (fs::is_directory(output, ignored) && !fs::is_empty(output, ignored)) refuse("there are files in it");
  const auto folder = std::make_shared<const PretrainedFolder>(PretrainedFolder::without_weights(config));
  const auto encoder = encoder_of(folder);
  const std::string preprocessor = "preprocessor_config.json";
  bool made = false;
  try {
    made = make_folder_atomically(output, [&](const std::string& building) {
      copy_file(config, building + "/config.json");
      if (!folder->preprocessor().empty())
        copy_file(folder->path() + "/" + preprocessor, building + "/" + preprocessor);
      write_random_weights(building + "/model.safetensors", *encoder, seed, output);
    });
  } catch (const std::bad_alloc&) {
    throw Error(ExitCode::kIo,
                fmt::format("{}: there is not enough memory for a tensor that it asks for", printable(config)));
  }
  if (!made) refuse("something else appeared there");
  int64_t values = 0;
  for (const auto& spec : encoder->specs()) values += values_of(spec);
  print_out("{}: {}, {} random parameters\n", output, folder->text("model_type", ""), values);
}

std::string input_of(const Encoder& encoder, const PretrainedFolder& folder) {
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  const std::string most =
      encoder.most_rows() < kAny ? fmt::format(", at most {} per sample", encoder.most_rows()) : "";
  switch (encoder.input()) {
    case data::ModalityKind::kWaveform:
      return fmt::format("a waveform{}, at least {}{}",
                         encoder.sample_rate() > 0 ? fmt::format(" of {} Hz", encoder.sample_rate()) : "",
                         plural(encoder.fewest_rows(), "value"), most);
    case data::ModalityKind::kTokens:
      return fmt::format("tokens of a vocabulary of {}{}", folder.integer("vocab_size", 0, 0, kAny), most);
    default:
      return "features";
  }
}

void inspect_encoder(const std::string& path, bool as_json) {
  const auto folder = std::make_shared<const PretrainedFolder>(path);
  const auto encoder = encoder_of(folder);
  const auto specs = encoder->specs();
  // As training does it: every value is read and checked. The files have at least a quarter of what this allocates.
  models::Parameters parameters(specs, models::DecayScope::kAll, at::kFloat, 0);
  encoder->load(parameters);
  const std::string type = folder->text("model_type", ""), input = input_of(*encoder, *folder),
                    hash = folder->content_hash();
  const auto ignored = encoder->ignored_tensors(), notes = models::preparation_notes(frozen_settings(), *folder);
  int64_t values = 0;
  for (const auto& spec : specs) values += values_of(spec);
  const int64_t layers = folder->integer("num_hidden_layers", 12, 0, 1'000'000);  // transformers' default
  if (as_json) {
    nlohmann::json row = {{"path", path},       {"model_type", type},      {"parameters", values},
                          {"layers", layers},   {"width", encoder->dim()}, {"takes", input},
                          {"ignored", ignored}, {"content_hash", hash},    {"notes", notes}};
    if (encoder->sample_rate() > 0) row["sample_rate"] = encoder->sample_rate();
    print_out("{}\n", json_text(row, 2));
    return;
  }
  std::vector<std::string> names;
  for (const auto& name : ignored) names.push_back(printable(name));
  const auto line = [](const char* name, const auto& value) { print_out("{:<14}{}\n", name, value); };
  print_out("{}\n", path);
  line("model type", type);
  line("parameters", values);
  line("layers", layers);
  line("width", encoder->dim());
  line("takes", input);
  line("ignored", ignored.empty() ? "nothing" : join_first(names, 20));
  line("content hash", hash);
  for (const auto& note : notes) line("note", note);
}

}  // namespace

void add_encoders_command(CLI::App& parent) {
  auto* encoders = parent.add_subcommand("encoders", "Inspect and make folders of pretrained encoders");
  encoders->require_subcommand(1);

  struct Arguments {
    std::string path, output;
    uint64_t seed = 1;
    bool json = false;
  };
  const auto arguments = std::make_shared<Arguments>();
  auto* inspection = encoders->add_subcommand(
      "inspect", "Show what a pretrained encoder is, or what is wrong with its folder; reads all of its weights");
  inspection->add_option("DIR", arguments->path, "Folder as Hugging Face lays it out")->required();
  inspection->add_flag("--json", arguments->json, "Print JSON");
  inspection->callback([arguments] { inspect_encoder(arguments->path, arguments->json); });

  auto* making =
      encoders->add_subcommand("init", "Make a folder with random weights, in the layout of a pretrained one");
  making
      ->add_option("--config", arguments->path,
                   "config.json of the encoder; preprocessor_config.json beside it is copied")
      ->required();
  making->add_option("--seed", arguments->seed, "Seed of the weights")->check(seed_problem)->capture_default_str();
  making->add_option("-o,--output", arguments->output, "Folder to make")->required();
  making->callback([arguments] { init_encoder(arguments->path, arguments->seed, arguments->output); });
}

}  // namespace muster::launcher
