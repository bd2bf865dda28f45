#include "core/models/encoders/make_encoder.h"

#include <fmt/format.h>
#include <unistd.h>

#include "base/error.h"
#include "base/text.h"

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

std::unique_ptr<Encoder> of_family(const config::Encoder& config, int64_t index, int64_t position,
                                   const std::shared_ptr<const PretrainedFolder>& folder) {
  const std::string type = folder->text("model_type", "");
  const EncoderBlock block{config, fmt::format("encoders[{}]", index), fmt::format("encoders.{}.", config.modality()),
                           folder, first_dropout_layer(position)};
  for (const char* const speech : {"wav2vec2", "hubert", "wavlm"})
    if (type == speech) return make_speech_encoder(block);
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

}  // namespace muster::models
