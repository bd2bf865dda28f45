#include "core/training/extraction.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/crc32c.h"
#include "base/files.h"
#include "base/sha256.h"
#include "base/text.h"
#include "checkpoints/safetensors.h"
#include "core/config/stored.h"
#include "core/data/writer.h"
#include "core/run/kept_encoders.h"
#include "core/training/autocast.h"
#include "distributed/collective_call.h"
#include "distributed/watchdog.h"

namespace muster::training {
namespace {

// Samples of a piece: what is encoded at once, and lost by an interruption.
constexpr int64_t kPiece = 16;
// Pieces that each rank encodes before all agree that they go on.
constexpr int64_t kPiecesBetweenAgreements = 2;
// In a piece's metadata: what it is of, which piece it is, and the checksum of its values.
const std::string kEncodingKey = "encoding", kPieceKey = "piece", kChecksumKey = "crc32c";

std::string checksum_of(const std::map<std::string, at::Tensor>& tensors) {
  uint32_t sum = 0;
  for (const auto& [name, tensor] : tensors)
    sum = crc32c({static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()}, crc32c(name, sum));
  return fmt::format("{:08x}", sum);
}

struct Pieces {
  explicit Pieces(const Extraction& extraction)
      : folder(extraction.folder),
        run_directory(extraction.run_directory),
        key(extraction.key),
        samples(extraction.source.index().size()) {}

  std::string folder, run_directory, key;
  int64_t samples;

  int64_t count() const { return (samples + kPiece - 1) / kPiece; }
  std::string file(int64_t piece) const { return fmt::format("{}/{:08}.safetensors", folder, piece); }
  std::map<std::string, std::string> metadata(int64_t piece, const std::map<std::string, at::Tensor>& tensors) const {
    return {{kEncodingKey, key}, {kPieceKey, fmt::format("{}", piece)}, {kChecksumKey, checksum_of(tensors)}};
  }
  std::vector<int64_t> samples_of(int64_t piece) const {
    std::vector<int64_t> all;
    for (int64_t s = piece * kPiece; s < std::min(samples, (piece + 1) * kPiece); ++s) all.push_back(s);
    return all;
  }
};

// The source's samples, with features in place of what was encoded.
class EncodedDataset final : public data::Dataset {
 public:
  EncodedDataset(const Extraction& extraction, bool encoded_only)
      : source_(*extraction.source.dataset), pieces_(extraction) {
    const DataSource& source = extraction.source;
    index_ = source.index();
    std::vector<bool> encoded(index_.modalities.size(), false);
    for (size_t m = 0; m < extraction.encoders.size(); ++m) {
      const models::Encoder* const encoder = extraction.encoders[m].get();
      if (encoder == nullptr) continue;
      data::Modality& modality = index_.modalities[source.modalities[m]];
      std::vector<int64_t> offsets{0};
      for (int64_t s = 0; s < index_.size(); ++s)
        offsets.push_back(offsets.back() + encoder->frames_of(source.limits[m].of(modality.length(s))));
      modality.offsets = std::move(offsets);
      modality.dim = encoder->dim();
      modality.kind = data::ModalityKind::kFeatures;
      modality.sample_rate = 0;
      encoded[source.modalities[m]] = true;
    }
    std::vector<data::Modality> kept;
    for (size_t m = 0; m < encoded.size(); ++m) {
      if (encoded_only && !encoded[m]) continue;
      kept.push_back(std::move(index_.modalities[m]));
      in_source_.push_back(encoded[m] ? -1 : static_cast<int64_t>(m));
    }
    index_.modalities = std::move(kept);
  }

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    distributed::report_progress();
    if (in_source_[modality] >= 0) return source_.read_frames(in_source_[modality], first, count, out);
    const data::Modality& info = index_.modalities[modality];
    while (count > 0) {
      const auto after = std::upper_bound(info.offsets.begin(), info.offsets.end(), first);
      const int64_t piece = (after - info.offsets.begin() - 1) / kPiece;
      const at::Tensor& frames = frames_of(piece, info);
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
  const at::Tensor& frames_of(int64_t piece, const data::Modality& modality) const {
    if (piece != held_) {
      const auto file = checkpoints::read_safetensors(pieces_.file(piece));
      if (file.metadata != pieces_.metadata(piece, file.tensors)) fail(piece);
      tensors_ = file.tensors;
      held_ = piece;
    }
    const auto found = tensors_.find(modality.name);
    const int64_t first = piece * kPiece, last = std::min(index_.size(), first + kPiece);
    if (found == tensors_.end() || found->second.scalar_type() != at::kFloat ||
        found->second.sizes() != at::IntArrayRef{modality.offsets[last] - modality.offsets[first], modality.dim})
      fail(piece);
    return found->second;
  }

  const data::Dataset& source_;
  const Pieces pieces_;
  std::vector<int64_t> in_source_;  // of each modality, its place in the source; -1: it was encoded
  mutable int64_t held_ = -1;
  mutable std::map<std::string, at::Tensor> tensors_;
};

[[noreturn]] void refuse_folder(const std::string& folder, const std::string& run_directory, const std::string& what) {
  if (run_directory.empty())
    throw Error(ExitCode::kUsage, fmt::format("{} {}: remove it, or give another output", printable(folder), what));
  throw Error(ExitCode::kIo,
              fmt::format("{} {}: the run keeps there what its frozen encoders have computed. Move what is yours "
                          "elsewhere or remove it, then: muster resume {}",
                          printable(folder), what, printable(run_directory)));
}

bool is_finished(const Pieces& pieces, int64_t piece) {
  std::error_code ignored;
  if (!std::filesystem::exists(pieces.file(piece), ignored)) return false;
  try {
    const auto file = checkpoints::read_safetensors(pieces.file(piece));
    if (const auto key = file.metadata.find(kEncodingKey); key != file.metadata.end() && key->second == pieces.key)
      return file.metadata == pieces.metadata(piece, file.tensors);  // damaged: it is encoded again
  } catch (const Error& error) {
    if (error.code() == ExitCode::kBadData) return false;  // likewise
    throw;
  }
  refuse_folder(pieces.folder, pieces.run_directory,
                "holds pieces of another encoding (other data, encoders or settings)");
}

void encode_piece(const Extraction& extraction, const Pieces& pieces, const batch::BatchReader& reader, int64_t piece) {
  const at::NoGradGuard no_gradient;
  const auto samples = pieces.samples_of(piece);
  std::map<std::string, at::Tensor> features;
  for (size_t m = 0; m < extraction.encoders.size(); ++m) {
    if (!extraction.encoders[m]) continue;
    const Autocast autocast(extraction.compute.bf16, extraction.compute.device.type());
    const auto frames = extraction.encoders[m]->encode(
        extraction.parameters, reader.read_modality(static_cast<int64_t>(m), samples), samples, models::StepContext{});
    features[extraction.source.shape.modalities[m]] = frames.values.to(at::kCPU, at::kFloat).contiguous();
  }
  std::vector<checkpoints::NamedTensor> tensors;
  for (const auto& [name, tensor] : features) tensors.push_back({name, tensor});
  checkpoints::write_safetensors(pieces.file(piece), tensors, pieces.metadata(piece, features));
}

}  // namespace

std::string extraction_key(const config::Experiment& experiment, const std::string& data_sha256,
                           const std::vector<std::unique_ptr<models::Encoder>>& encoders,
                           const models::Parameters& parameters) {
  const auto& training = experiment.training();
  Sha256 hash;
  hash.update(fmt::format("results {} data {} precision {} tf32 {}\n", config::kResultsVersion, data_sha256,
                          static_cast<int>(training.precision()), training.tf32()));
  for (const auto& encoder : experiment.encoders())
    hash.update(fmt::format("{} layer {} seconds {:.17g} tokens {}\n", encoder.modality(), encoder.layer(),
                            encoder.max_seconds(), encoder.max_tokens()));
  hash.update(run::encoder_descriptions(experiment));
  for (const auto& encoder : encoders) {
    if (!encoder) continue;
    for (const auto& spec : encoder->specs()) {
      const at::Tensor values = parameters[spec.name].detach().cpu().contiguous();
      hash.update(fmt::format("{} {}\n", spec.name, values.nbytes()));
      hash.update({static_cast<const char*>(values.const_data_ptr()), values.nbytes()});
    }
  }
  return hash.hex();
}

// What is not ours is neither used nor removed.
void require_own_pieces(const std::string& folder, const std::string& run_directory) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::exists(folder, ignored)) return;
  if (!fs::is_directory(folder, ignored)) refuse_folder(folder, run_directory, "is not a folder");
  for (const auto& name : list_folder(folder)) {
    const fs::path path(name);
    const auto number = parse_integer(path.stem().string());
    const bool ours = number && *number >= 0 && path.extension() == ".safetensors" &&
                      fs::is_regular_file(fs::path(folder) / path, ignored);
    const bool torn = name.rfind('.', 0) == 0;  // of a writer that was killed
    if (!ours && !torn)
      refuse_folder(folder, run_directory, fmt::format("holds {}, which is no piece of it", in_quotes(name)));
  }
}

Extracted extract(const Extraction& extraction, distributed::Communicator& communicator, run::Progress& progress,
                  const std::function<std::string()>& stop) {
  const distributed::CollectiveLabel label("features");
  const Pieces pieces(extraction);
  const DataSource& source = extraction.source;
  const batch::BatchReader reader(*source.dataset, source.modalities, {}, extraction.parameters.dtype(),
                                  extraction.compute.device, /*in_float32=*/false, source.limits);
  const int64_t rank = communicator.rank(), ranks = communicator.size();
  int64_t done = 0, found = 0;
  std::string stopped;
  distributed::run_on_all_ranks(communicator, [&] {
    if (rank != 0) return;
    require_own_pieces(pieces.folder, pieces.run_directory);
    make_folders(pieces.folder);
  });
  const int64_t round = kPiecesBetweenAgreements * ranks;
  for (int64_t first = 0; first < pieces.count() && stopped.empty(); first += round) {
    std::string own;
    distributed::run_on_all_ranks(communicator, [&] {
      for (int64_t piece = first + rank; piece < std::min(pieces.count(), first + round); piece += ranks) {
        distributed::report_progress();
        if (stop) own = stop();
        if (!own.empty()) return;
        const int64_t samples = std::min(kPiece, pieces.samples - piece * kPiece);
        progress.work("encoding, sample", piece * kPiece, pieces.samples);
        const bool is_there = is_finished(pieces, piece);
        if (!is_there) encode_piece(extraction, pieces, reader, piece);
        done += samples;
        if (is_there) found += samples;
      }
    });
    for (const auto& asked : communicator.all_gather_bytes(own))
      if (stopped.empty()) stopped = asked;
  }
  progress.clear();
  Extracted extracted{0, 0, stopped};
  for (const auto& counts : communicator.all_gather_bytes(fmt::format("{} {}", done, found))) {
    const size_t blank = counts.find(' ');
    extracted.samples += std::stoll(counts.substr(0, blank));
    extracted.found += std::stoll(counts.substr(blank + 1));
  }
  return extracted;
}

void write_extracted(const Extraction& extraction, const std::string& path, bool encoded_only) {
  data::write_container(path, EncodedDataset(extraction, encoded_only));
}

void remove_pieces(const Extraction& extraction) {
  std::error_code ignored;
  std::filesystem::remove_all(extraction.folder, ignored);
}

}  // namespace muster::training
