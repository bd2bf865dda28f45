#include "checkpoints/shard_reader.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "checkpoints/manifest.h"
#include "checkpoints/safetensors.h"

namespace muster::checkpoints {

namespace {

constexpr uint64_t kReadPiece = 4 << 20;  // small enough to be in the cache when its checksum is computed

uint64_t size_of_ordinary_file(const std::string& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)
      throw Error(ExitCode::kBadData, fmt::format("{} is missing.", path));
    throw_io_error("look up", path, errno);
  }
  if (!S_ISREG(status.st_mode)) throw Error(ExitCode::kBadData, fmt::format("{} is not an ordinary file.", path));
  return static_cast<uint64_t>(status.st_size);
}

}  // namespace

void look_up(const std::string& folder, const CheckpointFile& file) {
  const std::string path = folder + "/" + file.name;
  const uint64_t size = size_of_ordinary_file(path);
  if (size == file.size) return;
  throw Error(ExitCode::kBadData,
              fmt::format("{} is damaged: it has {} bytes, the manifest says {}.", path, size, file.size));
}

std::string read_manifest_bytes(const std::string& path) {
  const std::string file = path + "/" + kManifestName;
  size_of_ordinary_file(file);
  InputFile input(file, ExitCode::kBadData);
  if (input.size() > kLargestManifest) {
    throw Error(ExitCode::kBadData,
                fmt::format("{} is damaged: it has {} bytes, a manifest at most 64 MiB.", file, input.size()));
  }
  std::string bytes(input.size(), '\0');
  input.read(0, bytes.data(), bytes.size());
  return bytes;
}

ShardReader::ShardReader(const std::string& folder, const CheckpointFile& file)
    : path_(folder + "/" + file.name), expected_(file), input_((look_up(folder, file), path_), ExitCode::kBadData) {
  const auto refuse = [&](const std::string& problem) {
    throw Error(ExitCode::kBadData, fmt::format("{} is damaged: {}.", path_, problem));
  };
  if (input_.size() != file.size) refuse("its size changes");
  if (file.size < 8) refuse(fmt::format("it has {} bytes, not even a header length", file.size));
  uint64_t length = 0;
  input_.read(0, &length, 8);
  if (length > kLongestSafetensorsHeader || length > file.size - 8)
    refuse(fmt::format("its header would have {} bytes", length));
  json_.resize(length);
  input_.read(8, json_.data(), length);
  crc_ = crc32c(json_, crc32c(std::string_view(reinterpret_cast<const char*>(&length), 8)));
  position_ = 8 + length;
  header_ = parse_safetensors_header(json_, file.size - position_, path_);
  for (const auto& [name, entry] : header_.tensors) order_.push_back(name);
  std::stable_sort(order_.begin(), order_.end(), [&](const std::string& a, const std::string& b) {
    const auto &first = header_.tensors.at(a), &second = header_.tensors.at(b);
    return std::tie(first.begin, first.end) < std::tie(second.begin, second.end);
  });
}

void ShardReader::read(void* out, const std::function<void(uint64_t)>& progress) {
  const SafetensorsHeader::Entry& entry = header_.tensors.at(order_.at(next_++));
  std::string nowhere(out ? 0 : std::min(kReadPiece, entry.end - entry.begin), '\0');
  for (uint64_t done = 0, count = 0; done < entry.end - entry.begin; done += count) {
    count = std::min(kReadPiece, entry.end - entry.begin - done);
    char* place = out ? static_cast<char*>(out) + done : nowhere.data();
    input_.read(position_, place, count);
    crc_ = crc32c(std::string_view(place, count), crc_);
    if (entry.dtype == at::kBool && !holds_booleans(place, count)) {
      throw Error(ExitCode::kBadData, fmt::format("{} is damaged: tensor {}: a BOOL byte is neither 0 nor 1.", path_,
                                                  in_quotes(order_[next_ - 1])));
    }
    position_ += count;
    if (progress) progress(count);
  }
}

void ShardReader::finish() {
  if (crc_ == expected_.crc32c) return;
  throw Error(ExitCode::kBadData,
              fmt::format("{} is damaged: its CRC32C is not the one that it was written with.", path_));
}

}  // namespace muster::checkpoints
