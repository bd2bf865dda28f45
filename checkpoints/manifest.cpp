#include "checkpoints/manifest.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/text.h"
#include "checkpoints/manifest.pb.h"
#include "checkpoints/safetensors.h"

namespace muster::checkpoints {

namespace {

constexpr uint32_t kFormatVersion = 1;
constexpr uint32_t kMostRanks = 1'000'000;

// A parsed message takes a hundred bytes even when its encoding takes two: a file of empty messages would grow
// fiftyfold in memory. Real ones have eight bytes or more on average.
bool has_tiny_parts(const std::string& body) {
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(body.data()),
                                            static_cast<int>(body.size()));
  std::size_t parts = 0;
  while (const uint32_t tag = in.ReadTag()) {
    if (!google::protobuf::internal::WireFormatLite::SkipField(&in, tag)) break;
    ++parts;
  }
  return parts > 8 + body.size() / 8;
}

}  // namespace

std::string shard_name(int rank, int ranks, int retry) {
  return fmt::format("rank-{}-of-{}{}.safetensors", rank, ranks, retry > 0 ? fmt::format(".retry{}", retry) : "");
}

std::string serialize_manifest(const Manifest& manifest) {
  wire::Body body;
  body.set_step(manifest.info.step);
  body.set_epoch(manifest.info.epoch);
  body.set_seed(manifest.info.seed);
  body.mutable_score()->set_name(manifest.info.score.name);
  body.mutable_score()->set_value(manifest.info.score.value);
  body.mutable_score()->set_higher_is_better(manifest.info.score.higher_is_better);
  body.set_config(manifest.info.config);
  body.set_training_state(manifest.info.training_state);
  body.set_world_size(static_cast<uint32_t>(manifest.world_size));
  for (const CheckpointFile& file : manifest.files) {
    wire::File* out = body.add_files();
    out->set_name(file.name);
    out->set_size(file.size);
    out->set_crc32c(file.crc32c);
  }
  for (const TensorInfo& tensor : manifest.tensors) {
    wire::Tensor* out = body.add_tensors();
    out->set_name(tensor.name);
    out->set_dtype(safetensors_dtype(tensor.dtype));
    for (const int64_t size : tensor.shape) out->add_shape(static_cast<uint64_t>(size));
  }
  wire::Sealed sealed;
  sealed.set_format_version(kFormatVersion);
  sealed.set_body(body.SerializeAsString());
  sealed.set_body_crc32c(crc32c(sealed.body()));
  std::string bytes = sealed.SerializeAsString();
  try {
    parse_manifest(bytes, "The manifest to be written");
  } catch (const Error& error) {
    throw Error(ExitCode::kInternal, error.what());
  }
  return bytes;
}

Manifest parse_manifest(std::string_view bytes, const std::string& file) {
  const auto refuse = [&](const std::string& problem) {
    throw Error(ExitCode::kBadData, fmt::format("{} is damaged: {}.", file, problem));
  };
  if (bytes.size() > kLargestManifest) refuse(fmt::format("it has {} bytes, a manifest at most 64 MiB", bytes.size()));
  if (bytes.empty()) refuse("it is empty");
  wire::Sealed sealed;
  if (!sealed.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    refuse("it is not a manifest, or cut short");
  sealed.DiscardUnknownFields();
  if (sealed.SerializeAsString() != bytes) refuse("it holds more than a manifest does");
  if (crc32c(sealed.body()) != sealed.body_crc32c()) refuse("its checksum does not match its contents");
  if (sealed.format_version() != kFormatVersion) {
    refuse(fmt::format(
        "its format version is {}; this version of muster reads 1. If it is not damaged, a newer version of "
        "muster wrote it",
        sealed.format_version()));
  }
  if (has_tiny_parts(sealed.body())) refuse("it has more parts than its size allows");
  wire::Body body;
  const bool parsed = body.ParseFromString(sealed.body());
  body.DiscardUnknownFields();
  if (!parsed || !body.has_score() || body.SerializeAsString() != sealed.body()) {
    refuse("its checksum matches, but it was not written by this version of muster");
  }

  Manifest manifest;
  manifest.info.step = body.step();
  manifest.info.epoch = body.epoch();
  manifest.info.seed = body.seed();
  manifest.info.score = {body.score().name(), body.score().value(), body.score().higher_is_better()};
  manifest.info.config = body.config();
  manifest.info.training_state = body.training_state();
  if (body.world_size() < 1 || body.world_size() > kMostRanks)
    refuse(fmt::format("it was written by {} ranks", body.world_size()));
  manifest.world_size = static_cast<int>(body.world_size());
  if (body.files_size() != manifest.world_size) {
    refuse(fmt::format("it names {} files of {} ranks", body.files_size(), manifest.world_size));
  }
  uint64_t bytes_in_files = 0, bytes_in_tensors = 0;
  for (int rank = 0; rank < manifest.world_size; ++rank) {
    const wire::File& entry = body.files(rank);
    int retry = 0;
    while (retry <= kMostRetries && entry.name() != shard_name(rank, manifest.world_size, retry)) ++retry;
    if (retry > kMostRetries) refuse(fmt::format("it names {} as the file of rank {}", in_quotes(entry.name()), rank));
    if (__builtin_add_overflow(bytes_in_files, entry.size(), &bytes_in_files)) refuse("its files are too large");
    manifest.files.push_back({entry.name(), entry.size(), entry.crc32c()});
  }
  for (const wire::Tensor& entry : body.tensors()) {
    const auto problem = [&](const std::string& what) {
      refuse(fmt::format("tensor {}: {}", in_quotes(entry.name()), what));
    };
    if (!manifest.tensors.empty() && !(manifest.tensors.back().name < entry.name()))
      problem("the names are not in order");
    const std::optional<at::ScalarType> dtype = dtype_of_safetensors(entry.dtype());
    if (!dtype) problem(fmt::format("its dtype {} cannot be read", in_quotes(entry.dtype())));
    if (static_cast<std::size_t>(entry.shape_size()) > kMostDimensions) problem("it has more than 64 dimensions");
    std::vector<int64_t> shape;
    for (const uint64_t size : entry.shape()) {
      if (size > uint64_t{std::numeric_limits<int64_t>::max()}) problem("its shape is too large");
      shape.push_back(static_cast<int64_t>(size));
    }
    const std::optional<uint64_t> size = bytes_of_shape(*dtype, shape);
    if (!size || __builtin_add_overflow(bytes_in_tensors, *size, &bytes_in_tensors) ||
        bytes_in_tensors > bytes_in_files) {
      problem("it is larger than the files that should hold it");
    }
    manifest.tensors.push_back({entry.name(), *dtype, std::move(shape)});
  }
  return manifest;
}

}  // namespace muster::checkpoints
