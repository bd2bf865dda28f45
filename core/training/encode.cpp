#include "core/training/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/files.h"
#include "base/json.h"
#include "base/sha256.h"
#include "base/text.h"
#include "checkpoints/safetensors.h"
#include "core/config/resolved_text.h"
#include "core/data/writer.h"
#include "core/models/encoders/pretrained_folder.h"
#include "core/models/make_model.h"
#include "core/run/kept_encoders.h"
#include "core/training/autocast.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "core/training/same_job.h"
#include "distributed/watchdog.h"

namespace muster::training {
namespace {

// Samples of a piece: what is encoded at once, and lost by an interruption.
constexpr int64_t kPiece = 16;
const std::string kEncodingKey = "encoding";  // in a piece's metadata: what it is of

struct Pieces {
  std::string folder, key;
  int64_t samples;

  int64_t count() const { return (samples + kPiece - 1) / kPiece; }
  std::string file(int64_t piece) const { return fmt::format("{}/{:08}.safetensors", folder, piece); }
  std::vector<int64_t> samples_of(int64_t piece) const {
    std::vector<int64_t> all;
    for (int64_t s = piece * kPiece; s < std::min(samples, (piece + 1) * kPiece); ++s) all.push_back(s);
    return all;
  }
};

// The source's samples, with features in place of what was encoded.
class EncodedDataset final : public data::Dataset {
 public:
  EncodedDataset(const DataSource& source, const std::vector<std::unique_ptr<models::Encoder>>& encoders,
                 const Pieces& pieces)
      : source_(*source.dataset), pieces_(pieces), encoded_(source.index().modalities.size()) {
    index_ = source.index();
    for (size_t m = 0; m < encoders.size(); ++m) {
      if (!encoders[m]) continue;
      data::Modality& modality = index_.modalities[source.modalities[m]];
      std::vector<int64_t> offsets{0};
      for (int64_t s = 0; s < index_.size(); ++s)
        offsets.push_back(offsets.back() + encoders[m]->frames_of(source.limits[m].of(modality.length(s))));
      modality.offsets = std::move(offsets);
      modality.dim = encoders[m]->dim();
      modality.kind = data::ModalityKind::kFeatures;
      modality.sample_rate = 0;
      encoded_[source.modalities[m]] = true;
    }
  }

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    if (!encoded_[modality]) return source_.read_frames(modality, first, count, out);
    const data::Modality& info = index_.modalities[modality];
    while (count > 0) {
      const auto after = std::upper_bound(info.offsets.begin(), info.offsets.end(), first);
      const int64_t piece = (after - info.offsets.begin() - 1) / kPiece;
      const at::Tensor& frames = frames_of(piece, info.name);
      const int64_t begin = info.offsets[piece * kPiece], rows = std::min(count, begin + frames.size(0) - first);
      std::copy_n(frames.const_data_ptr<float>() + (first - begin) * info.dim, rows * info.dim, out);
      first += rows;
      count -= rows;
      out += rows * info.dim;
    }
  }
  std::string content_hash() const override { return pieces_.key; }
  std::string source() const override { return source_.source(); }

 private:
  [[noreturn]] void fail(int64_t piece) const {
    throw Error(ExitCode::kBadData, fmt::format("{}: is not what was written there", printable(pieces_.file(piece))));
  }

  // Containers are written modality by modality, from the first frame to the last: one piece at a time is enough.
  const at::Tensor& frames_of(int64_t piece, const std::string& modality) const {
    if (piece != held_) {
      const auto file = checkpoints::read_safetensors(pieces_.file(piece));
      const auto key = file.metadata.find(kEncodingKey);
      if (key == file.metadata.end() || key->second != pieces_.key) fail(piece);
      tensors_ = file.tensors;
      held_ = piece;
    }
    const auto found = tensors_.find(modality);
    const data::Modality& info = index_.modalities[index_.find_modality(modality)];
    const int64_t first = piece * kPiece, last = std::min(index_.size(), first + kPiece);
    if (found == tensors_.end() || found->second.scalar_type() != at::kFloat ||
        found->second.sizes() != at::IntArrayRef{info.offsets[last] - info.offsets[first], info.dim})
      fail(piece);
    return found->second;
  }

  const data::Dataset& source_;
  const Pieces& pieces_;
  std::vector<bool> encoded_;
  mutable int64_t held_ = -1;
  mutable std::map<std::string, at::Tensor> tensors_;
};

// What the features depend on.
std::string key_of(const config::Experiment& experiment, const std::string& data_hash,
                   const nlohmann::json& encoder_hashes) {
  std::string text = data_hash;
  for (const auto& encoder : experiment.encoders())
    text += fmt::format("|{} {} seed {} layer {} seconds {:.17g} tokens {}", encoder.modality(),
                        text_in(encoder_hashes[encoder.modality()], "sha256"), experiment.seed(), encoder.layer(),
                        encoder.max_seconds(), encoder.max_tokens());
  return sha256_of(fmt::format("{}|precision {}", text, static_cast<int>(experiment.training().precision())));
}

[[noreturn]] void refuse_folder(const Pieces& pieces, const std::string& what) {
  throw Error(ExitCode::kUsage,
              fmt::format("{} holds {}: remove the folder, or give another output", printable(pieces.folder), what));
}

// What is not ours is neither used nor removed.
void require_own_folder(const Pieces& pieces) {
  make_folders(pieces.folder);
  for (const auto& entry : std::filesystem::directory_iterator(pieces.folder)) {
    const auto number = parse_integer(entry.path().stem().string());
    const bool ours = number && *number >= 0 && entry.path().extension() == ".safetensors" && entry.is_regular_file();
    const bool torn = entry.path().filename().string().rfind('.', 0) == 0;  // of a writer that was killed
    if (!ours && !torn)
      refuse_folder(pieces, fmt::format("{}, which is no piece of it", in_quotes(entry.path().filename().string())));
  }
}

bool is_finished(const Pieces& pieces, int64_t piece) {
  std::error_code ignored;
  if (!std::filesystem::exists(pieces.file(piece), ignored)) return false;
  const auto file = checkpoints::read_safetensors(pieces.file(piece));
  if (const auto key = file.metadata.find(kEncodingKey); key != file.metadata.end() && key->second == pieces.key)
    return true;
  refuse_folder(pieces, "pieces of another encoding (other data, encoders or settings)");
}

}  // namespace

EncodedData encode_dataset(const config::Experiment& experiment, const std::string& output,
                           distributed::Communicator& control, run::Progress& progress) {
  if (experiment.encoders_size() == 0)
    throw SharedError(ExitCode::kUsage,
                      "the experiment has no encoders: add encoders { modality: ... path: ... }, which is what to "
                      "extract features with");
  for (int i = 0; i < experiment.encoders_size(); ++i)
    if (experiment.encoders(i).weighted_layers())
      throw SharedError(ExitCode::kBadConfig,
                        fmt::format("encoders[{}].weighted_layers: the weights of the sum are learnt in training; to "
                                    "extract features choose one layer with encoders[{}].layer",
                                    i, i));
  const Compute compute = prepare_compute(experiment.training(), control);
  require_same_job(control, config::resolved_text(experiment) + output);
  DataSource source;
  std::vector<std::unique_ptr<models::Encoder>> encoders;
  std::optional<models::Parameters> parameters;
  distributed::run_on_all_ranks(control, [&] {
    source = open_data(experiment, "", /*labels_required=*/false);
    encoders = models::make_encoders(experiment, source.shape.modalities);
    std::vector<models::ParameterSpec> specs;
    for (const auto& encoder : encoders)
      if (encoder)
        for (auto& spec : encoder->specs()) {
          spec.trained = false;  // no gradients
          specs.push_back(std::move(spec));
        }
    parameters.emplace(specs, models::DecayScope::kAll, models::dtype_of(experiment), experiment.seed());
    for (const auto& encoder : encoders)
      if (encoder && encoder->is_pretrained()) encoder->load(*parameters);
  });
  require_finite_features(source, control, [&](int64_t done, int64_t total) {
    distributed::report_progress();
    progress.work("checking data, sample", done, total);
  });
  Pieces pieces{output + ".parts", "", source.index().size()};
  pieces.key = key_of(experiment, require_same_data(*source.dataset, control), [&] {
    nlohmann::json hashes;
    distributed::run_on_all_ranks(control, [&] { hashes = run::encoder_hashes(experiment); });
    return hashes;
  }());
  distributed::require_same(control, "what the encoders are", pieces.key,
                            "Copy the same folders to every node, or name those on a shared file system",
                            ExitCode::kBadData);
  parameters->move_to(compute.device);
  const batch::BatchReader reader(*source.dataset, source.modalities, {}, parameters->dtype(), compute.device,
                                  /*in_float32=*/false, source.limits);
  int64_t found = 0;
  distributed::run_on_all_ranks(control, [&] {
    if (control.rank() == 0) require_own_folder(pieces);
  });
  distributed::run_on_all_ranks(control, [&] {
    const at::NoGradGuard no_gradient;
    for (int64_t piece = control.rank(); piece < pieces.count(); piece += control.size()) {
      distributed::report_progress();
      const auto samples = pieces.samples_of(piece);
      progress.work("encoding, sample", samples.front(), pieces.samples);
      if (is_finished(pieces, piece)) {
        found += static_cast<int64_t>(samples.size());
        continue;
      }
      std::vector<checkpoints::NamedTensor> features;
      for (size_t m = 0; m < encoders.size(); ++m) {
        if (!encoders[m]) continue;
        const Autocast autocast(compute.bf16, compute.device.type());
        const auto frames = encoders[m]->encode(*parameters, reader.read_modality(static_cast<int64_t>(m), samples),
                                                samples, models::StepContext{});
        features.push_back({source.shape.modalities[m], frames.values.to(at::kCPU, at::kFloat).contiguous()});
      }
      checkpoints::write_safetensors(pieces.file(piece), features, {{kEncodingKey, pieces.key}});
    }
  });
  progress.clear();
  const at::Tensor found_by_all = at::full({1}, found, at::kLong);
  control.all_reduce_sum(found_by_all);
  distributed::run_on_all_ranks(control, [&] {
    if (control.rank() != 0) return;
    data::write_container(output, EncodedDataset(source, encoders, pieces));
    std::error_code ignored;  // what is left is only in the way
    std::filesystem::remove_all(pieces.folder, ignored);
  });
  return {pieces.samples, found_by_all.item<int64_t>()};
}

}  // namespace muster::training
