#include "core/run/kept_encoders.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "core/models/encoders/pretrained_folder.h"

namespace muster::run {
namespace {

constexpr uint64_t kLargestDescription = 64 << 20;
const char* const kDescriptions[] = {"config.json", "preprocessor_config.json"};

// config.json, and the file beside it, of what encoders[].path names: a folder, or a config.json itself.
std::string description_of(const std::string& path, const std::string& name) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return fmt::format("{}/{}", path, name);
  return name == kDescriptions[0] ? path : fmt::format("{}/{}", parent_of(path), name);
}

std::string kept_folder(const std::string& run_directory, const config::Encoder& encoder) {
  return fmt::format("{}/encoders/{}", run_directory, encoder.modality());
}

}  // namespace

void keep_encoders(const config::Experiment& experiment, RunDirectory& directory) {
  for (const auto& encoder : experiment.encoders()) {
    const std::string folder = kept_folder(directory.path(), encoder);
    if (read_file_if_there(fmt::format("{}/{}", folder, kDescriptions[0]), kLargestDescription)) continue;
    make_folders(folder);
    // config.json last: where it is, all are.
    for (const char* const name : {kDescriptions[1], kDescriptions[0]})
      if (const auto text = read_file_if_there(description_of(encoder.path(), name), kLargestDescription))
        directory.write(fmt::format("encoders/{}/{}", encoder.modality(), name), *text);
  }
}

config::Experiment with_kept_encoders(config::Experiment experiment, const std::string& run_directory) {
  for (auto& encoder : *experiment.mutable_encoders()) {
    const std::string kept = fmt::format("{}/{}", kept_folder(run_directory, encoder), kDescriptions[0]);
    if (read_file_if_there(kept, kLargestDescription)) encoder.set_path(kept);
  }
  return experiment;
}

void require_kept_encoders(const config::Experiment& experiment, const std::string& run_directory) {
  for (int i = 0; i < experiment.encoders_size(); ++i) {
    const auto& encoder = experiment.encoders(i);
    const std::string folder = kept_folder(run_directory, encoder);
    if (!read_file_if_there(fmt::format("{}/{}", folder, kDescriptions[0]), kLargestDescription)) continue;
    for (const char* const name : kDescriptions) {
      const std::string given = description_of(encoder.path(), name), kept = fmt::format("{}/{}", folder, name);
      const auto text = read_file_if_there(given, kLargestDescription),
                 before = read_file_if_there(kept, kLargestDescription);
      std::error_code ignored;
      if (before && !text && !std::filesystem::exists(given, ignored)) {
        const bool is_gone = !std::filesystem::exists(encoder.path(), ignored);
        throw Error(ExitCode::kIo,
                    fmt::format("encoders[{0}].path: {1} is not there any more. The run has no checkpoint yet, so it "
                                "starts again, from that encoder's weights: put it back, or say where it is now with "
                                "--set encoders[{0}].path=...",
                                i, printable(is_gone ? encoder.path() : given)));
      }
      if (text && !before)
        throw Error(ExitCode::kBadConfig,
                    fmt::format("encoders[{}].path: {} was not there when the run began", i, printable(given)));
      if (text != before)
        throw Error(ExitCode::kBadConfig,
                    fmt::format("encoders[{}].path: {} differs from the one that the run began with, {}", i,
                                printable(given), printable(kept)));
    }
  }
}

bool is_recorded_encoder(const config::Encoder& encoder, const std::string& run_directory) {
  const auto recorded = text_in(member_of(recorded_encoders(run_directory), encoder.modality().c_str()), "sha256");
  try {
    return !recorded.empty() && models::PretrainedFolder::open(encoder.path()).content_hash() == recorded;
  } catch (const Error&) {  // what cannot be read is not the same
    return false;
  }
}

std::string encoder_descriptions(const config::Experiment& experiment) {
  std::string all;
  for (const auto& encoder : experiment.encoders())
    for (const char* const name : kDescriptions) {
      const auto text = read_file_if_there(description_of(encoder.path(), name), kLargestDescription);
      all += fmt::format("{} {} {}\n{}\n", encoder.modality(), name, text ? text->size() : 0, text.value_or(""));
    }
  return all;
}

nlohmann::json encoder_hashes(const config::Experiment& experiment) {
  nlohmann::json hashes;
  for (const auto& encoder : experiment.encoders())
    hashes[encoder.modality()] = {{"path", encoder.path()},
                                  {"sha256", models::PretrainedFolder::open(encoder.path()).content_hash()}};
  return hashes;
}

nlohmann::json recorded_encoders(const std::string& run_directory) {
  const auto recorded = member_of(read_json_object(run_directory + "/environment.json"), "encoders");
  return recorded.is_object() ? recorded : nlohmann::json::object();
}

}  // namespace muster::run
