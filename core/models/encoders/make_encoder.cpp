#include "core/models/encoders/make_encoder.h"

#include <fmt/format.h>
#include <unistd.h>

#include "base/error.h"
#include "base/text.h"
#include "core/models/encoders/speech_config.h"

namespace muster::models {

std::unique_ptr<Encoder> make_encoder(const config::Encoder& config, int64_t index, int64_t position) {
  return make_encoder(config, index, position,
                      std::make_shared<const PretrainedFolder>(PretrainedFolder::open(config.path())));
}

namespace {

// Of what no file vouches for: a config.json alone may ask for anything.
void require_memory(const Encoder& encoder, const PretrainedFolder& folder) {
  double values = 0;
  for (const auto& spec : encoder.specs()) {
    double count = 1;
    for (const int64_t size : spec.shape) count *= static_cast<double>(size);
    values += count;
  }
  const double bytes = values * sizeof(float),
               memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  if (bytes > memory)
    throw Error(ExitCode::kBadData,
                fmt::format("{}: asks for {:.0f} parameters, {}, more than this machine's memory ({})",
                            printable(folder.config_path()), values, size_text(bytes), size_text(memory)));
}

bool is_speech(const PretrainedFolder& folder) {
  const std::string type = folder.text("model_type", "");
  return type == "wav2vec2" || type == "hubert" || type == "wavlm";
}

std::unique_ptr<Encoder> of_family(const config::Encoder& config, int64_t index, int64_t position,
                                   const std::shared_ptr<const PretrainedFolder>& folder) {
  const std::string type = folder->text("model_type", "");
  const EncoderBlock block{config, fmt::format("encoders[{}]", index), fmt::format("encoders.{}.", config.modality()),
                           folder, first_dropout_layer(position)};
  if (is_speech(*folder)) return make_speech_encoder(block);
  for (const char* const text : {"bert", "roberta", "xlm-roberta"})
    if (type == text) return make_text_encoder(block);
  folder->refuse("model_type",
                 "encoders are wav2vec2, hubert and wavlm for speech, bert, roberta and xlm-roberta for text");
}

}  // namespace

std::unique_ptr<Encoder> make_encoder(const config::Encoder& config, int64_t index, int64_t position,
                                      std::shared_ptr<const PretrainedFolder> folder) {
  auto encoder = of_family(config, index, position, folder);
  if (!folder->has_weights()) require_memory(*encoder, *folder);
  return encoder;
}

std::vector<std::string> preparation_notes(const config::Encoder& config, const PretrainedFolder& folder) {
  return is_speech(folder) ? read_speech_config(folder, config).notes : std::vector<std::string>();
}

std::vector<std::string> preparation_notes(const config::Experiment& experiment) {
  std::vector<std::string> notes;
  for (const auto& encoder : experiment.encoders())
    for (auto& note : preparation_notes(encoder, PretrainedFolder::open(encoder.path())))
      notes.push_back(fmt::format("encoder of {}: {}", encoder.modality(), note));
  return notes;
}

}  // namespace muster::models
