#include "core/training/frozen_features.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "base/atomic_file.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "core/data/container.h"
#include "core/data/joined.h"
#include "core/run/kept_encoders.h"
#include "core/run/stop.h"
#include "core/training/extraction.h"
#include "distributed/collective_call.h"
#include "distributed/watchdog.h"

namespace muster::training {
namespace {

const char* const kFolder = "frozen_features";

// What this program gives its files there: names that begin with a key, or, of a writer that was killed, with a dot and
// a key.
bool is_feature_file(const std::string& name) {
  constexpr size_t kDigits = 64;
  const size_t begin = name.rfind('.', 0) == 0 ? 1 : 0;
  const size_t end = std::min(name.find_first_not_of("0123456789abcdef", begin), name.size());
  return end - begin == kDigits && end < name.size() && name[end] == '.';
}

// Removes what is of other keys than `kept`, and what killed writers have left.
void remove_others(const std::string& folder, const std::string& kept) {
  for (const auto& name : list_folder(folder)) {
    std::error_code ignored;
    if (is_feature_file(name) && (kept.empty() || name.rfind(kept, 0) != 0))
      std::filesystem::remove_all(folder + "/" + name, ignored);
  }
}

// The encoders of run.frozen, per used modality, and the experiment with these alone.
struct FrozenEncoders {
  explicit FrozenEncoders(const TrainingRun& run)
      : experiment(run::with_kept_encoders(run.config, run.options.run_directory)) {
    auto& blocks = *experiment.mutable_encoders();
    blocks.erase(std::remove_if(blocks.begin(), blocks.end(),
                                [&](const auto& encoder) { return !run.frozen.count(encoder.modality()); }),
                 blocks.end());
    encoders = models::make_encoders(experiment, run.data.shape.modalities);
  }
  config::Experiment experiment;
  std::vector<std::unique_ptr<models::Encoder>> encoders;
};

struct FeatureFiles {
  FeatureFiles(const std::string& folder, const std::string& key) : key(key), base(folder + "/" + key) {}
  std::string features() const { return base + ".h5"; }
  std::string description() const { return base + ".json"; }
  std::string pieces() const { return base + ".parts"; }

  std::string key, base;
};

// Whether the features are there, whole, and of this key. Reads all of them.
bool are_whole(const FeatureFiles& files, run::Progress& progress) {
  const auto description = read_json_object(files.description());
  if (description.empty()) return false;
  std::error_code ignored;
  std::string problem;
  if (text_in(description, "encoding") != files.key) {
    problem = fmt::format("{}: does not describe these features.", printable(files.description()));
  } else {
    try {
      if (data::open_container(files.features())->content_hash() == text_in(description, "sha256")) return true;
      problem = fmt::format("{}: is not what was written there.", printable(files.features()));
    } catch (const Error& error) {
      if (error.code() == ExitCode::kIo && std::filesystem::exists(files.features(), ignored)) throw;
      problem = error.what();
    }
  }
  progress.line(fmt::format("warning: {} The frozen encoders run again", problem));
  return false;
}

// Nothing else may be where the run is going to write, which it would notice after all the work.
void require_places(const FeatureFiles& files, const std::string& run_directory) {
  std::error_code ignored;
  for (const auto& path : {files.features(), files.description()})
    if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored))
      throw Error(ExitCode::kIo,
                  fmt::format("{} is not a file: the run keeps there what its frozen encoders have computed. Move it "
                              "elsewhere or remove it, then: muster resume {}",
                              printable(path), printable(run_directory)));
  require_own_pieces(files.pieces(), run_directory);
}

// What asks this rank to stop.
std::string stop_reason(const TrainingRun& run) {
  if (const auto request = run::stop_request(run.communicator.rank(), run.communicator.size()); !request.empty())
    return request;
  const std::chrono::duration<double> elapsed = TrainingRun::Clock::now() - run.started;
  const double limit = run.options.time_limit;
  return limit > 0 && elapsed.count() >= limit ? "the time limit" : "";
}

void compute_features(TrainingRun& run, const Extraction& extraction, const FeatureFiles& files) {
  const std::string names = join({run.frozen.begin(), run.frozen.end()}, " and of ");
  run.progress.line(
      fmt::format("running the frozen encoder of {} once over {}", names, plural(run.data.index().size(), "sample")));
  const Extracted extracted = extract(extraction, run.communicator, run.progress, [&] { return stop_reason(run); });
  if (!extracted.stopped_by.empty())
    throw SharedError(
        ExitCode::kRequeue,
        fmt::format("stopped by {} while the frozen encoder of {} ran: features of at least {} of {} samples are kept; "
                    "continue, on any number of ranks, with: muster resume {}",
                    extracted.stopped_by, names, extracted.samples, run.data.index().size(),
                    run.options.run_directory));
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (!run.is_main()) return;
    run.directory->require_held();
    write_extracted(extraction, files.features(), /*encoded_only=*/true);
    const nlohmann::json description = {{"encoding", files.key},
                                        {"sha256", data::open_container(files.features())->content_hash()}};
    write_file_atomically(files.description(), json_text(description, 2) + "\n");
    remove_pieces(extraction);
  });
  run.progress.line(
      fmt::format("the frozen encoder of {} has run over {}{}", names, plural(extracted.samples, "sample"),
                  extracted.found > 0 ? fmt::format(", {} of them in an earlier job", extracted.found) : ""));
}

}  // namespace

std::set<std::string> frozen_modalities(const config::Experiment& experiment) {
  std::set<std::string> frozen;
  if (experiment.training().precision() == config::Training::FP64) return frozen;
  for (const auto& encoder : experiment.encoders())
    if (encoder.train() == config::Encoder::FROZEN && !encoder.weighted_layers()) frozen.insert(encoder.modality());
  return frozen;
}

std::string frozen_features_folder(const std::string& run_directory) {
  return fmt::format("{}/{}", run_directory, kFolder);
}

int64_t frozen_features_done(const std::string& run_directory) {
  constexpr int64_t kWhole = 1000000000;
  int64_t done = 0;
  std::error_code ignored;
  for (auto entry = std::filesystem::recursive_directory_iterator(frozen_features_folder(run_directory), ignored);
       entry != std::filesystem::recursive_directory_iterator(); entry.increment(ignored)) {
    const auto& path = entry->path();
    if (path.extension() == ".safetensors" && path.filename().string().rfind('.', 0) != 0) ++done;
    if (path.extension() == ".json") done += kWhole;
  }
  return done;
}

int64_t bytes_with_frozen(const DataSource& data, const std::set<std::string>& frozen,
                          const std::vector<std::unique_ptr<models::Encoder>>& encoders, at::ScalarType dtype) {
  int64_t bytes = 0;
  for (size_t m = 0; m < data.modalities.size(); ++m) {
    const auto& modality = data.index().modalities[static_cast<size_t>(data.modalities[m])];
    const bool is_frozen = frozen.count(modality.name) > 0;
    int64_t frames = modality.offsets.back();
    if (is_frozen) {
      frames = 0;
      for (int64_t sample = 0; sample < data.index().size(); ++sample)
        frames += encoders[m]->frames_of(data.limits[m].of(modality.length(sample)));
    }
    const bool tokens = !is_frozen && modality.kind == data::ModalityKind::kTokens;
    bytes += frames * (is_frozen ? encoders[m]->dim() : modality.dim) *
             static_cast<int64_t>(c10::elementSize(tokens ? at::kLong : dtype));
  }
  return bytes;
}

void require_room_on_device(TrainingRun& run) {
  if (run.compute.device.is_cpu() || run.config.training().data_on_device() != config::Training::ALWAYS) return;
  distributed::run_on_all_ranks(run.communicator, [&] {
    config::with_places(run.loaded, [&] {
      batch::keep_resident(
          config::Training::ALWAYS,
          bytes_with_frozen(run.data, run.frozen, FrozenEncoders(run).encoders, run.model->parameters().dtype()),
          batch::free_device_memory(run.compute.device), run.compute.ranks_on_gpu);
    });
  });
}

void use_frozen_features(TrainingRun& run) {
  if (run.frozen.empty()) return;
  const distributed::CollectiveLabel label("frozen features");
  auto& communicator = run.communicator;
  const std::string folder = frozen_features_folder(run.options.run_directory);
  std::optional<FrozenEncoders> frozen;
  std::string key, whole;
  distributed::run_on_all_ranks(communicator, [&] {
    // The directory has the encoders' descriptions by now, and the model their weights.
    frozen.emplace(run);
    if (!run.is_main()) return;
    key = extraction_key(frozen->experiment, run.provenance.data_sha256(), frozen->encoders, run.model->parameters());
    make_folders(folder);
    remove_others(folder, key);
    const FeatureFiles found(folder, key);
    require_places(found, run.options.run_directory);
    if (!are_whole(found, run.progress)) return;
    whole = "whole";
    std::error_code ignored;
    std::filesystem::remove_all(found.pieces(), ignored);  // of a job that was killed right behind the whole
  });
  key = communicator.all_gather_bytes(key)[0];
  whole = communicator.all_gather_bytes(whole)[0];
  const FeatureFiles files(folder, key);
  if (whole.empty()) {
    compute_features(run,
                     {run.data, frozen->encoders, run.model->parameters(), run.compute, key, files.pieces(),
                      run.options.run_directory},
                     files);
  } else {
    run.progress.line(fmt::format("the frozen encoder of {} has run in an earlier job: {}",
                                  join({run.frozen.begin(), run.frozen.end()}, " and of "), files.features()));
  }
  distributed::run_on_all_ranks(communicator, [&] {
    run.with_frozen = std::make_shared<data::JoinedDataset>(run.data.dataset, data::open_container(files.features()));
  });
  make_step(run);
}

void remove_frozen_features(TrainingRun& run) {
  if (run.frozen.empty()) return;
  // Network file systems keep a file that is open.
  run.step.reset();
  run.reader.reset();
  run.with_frozen.reset();
  distributed::run_on_all_ranks(run.communicator, [] {});
  if (!run.is_main()) return;
  const std::string folder = frozen_features_folder(run.options.run_directory);
  try {
    remove_others(folder, "");
    std::error_code ignored;
    std::filesystem::remove(folder, ignored);  // where nothing else is in it
  } catch (const Error& error) {
    run.progress.line(
        fmt::format("warning: features that nothing needs any more could not be removed: {}", error.what()));
  }
}

}  // namespace muster::training
