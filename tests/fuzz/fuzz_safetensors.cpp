// libFuzzer: the readers of safetensors files, one alone and one of a checkpoint. The input is the header's JSON, a
// line break and the data; after a first byte 'r' it is the file itself. What is taken must be the same after it was
// written and read again.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "base/crc32c.h"
#include "base/error.h"
#include "checkpoints/fingerprint.h"
#include "checkpoints/shard_reader.h"
#include "checkpoints/shares.h"

namespace checkpoints = muster::checkpoints;

namespace {

void fill(int descriptor, const std::string& bytes) {
  if (::ftruncate(descriptor, 0) != 0 ||
      ::pwrite(descriptor, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    std::abort();
}

// Whether the file was taken.
template <typename Action>
bool taken(Action action) {
  try {
    action();
    return true;
  } catch (const muster::Error& error) {
    if (error.code() != muster::ExitCode::kBadData) std::abort();
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int descriptor = ::memfd_create("fuzz", MFD_CLOEXEC);
  static const std::string folder = "/proc/self/fd", name = std::to_string(descriptor), path = folder + "/" + name;
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (size > 0 && data[0] == 'r') {
    bytes.erase(0, 1);
  } else {
    const uint64_t length = std::min(bytes.find('\n'), bytes.size());
    if (length < bytes.size()) bytes.erase(length, 1);
    bytes.insert(0, reinterpret_cast<const char*>(&length), 8);
  }
  fill(descriptor, bytes);

  checkpoints::SafetensorsFile file;
  const bool alone = taken([&] { file = checkpoints::read_safetensors(path); });
  const bool in_checkpoint = taken([&] {
    checkpoints::ShardReader reader(folder, {name, bytes.size(), crc32c(bytes)});
    for (const std::string& tensor : reader.order()) {
      std::string values(reader.header().tensors.at(tensor).end - reader.header().tensors.at(tensor).begin, '\0');
      reader.read(values.data());
      const auto other = file.tensors.find(tensor);
      if (other == file.tensors.end() || other->second.nbytes() != values.size()) std::abort();
      if (!values.empty() && std::memcmp(values.data(), other->second.const_data_ptr(), values.size()) != 0)
        std::abort();
    }
    reader.finish();
  });
  if (alone != in_checkpoint) std::abort();
  if (!alone) return 0;

  taken([&] {
    checkpoints::ShardReader reader(folder, {name, bytes.size(), crc32c(bytes)});
    std::vector<checkpoints::TensorInfo> table;
    for (const auto& [tensor, entry] : reader.header().tensors) table.push_back({tensor, entry.dtype, entry.shape});
    checkpoints::Coverage coverage(table);
    coverage.add(path, reader.header());
    coverage.require_complete(path);
  });
  for (const auto& [tensor, values] : file.tensors)
    if (tensor.find('\n') != tensor.npos) return 0;  // such have no fingerprint
  const std::string before = checkpoints::fingerprint(file);
  std::vector<checkpoints::NamedTensor> tensors;
  for (const auto& [tensor, values] : file.tensors) tensors.push_back({tensor, values});
  std::string again;
  checkpoints::serialize_safetensors(tensors, file.metadata, [&](std::string_view piece) { again += piece; });
  fill(descriptor, again);
  const checkpoints::SafetensorsFile same = checkpoints::read_safetensors(path);
  if (checkpoints::fingerprint(same) != before || same.metadata != file.metadata) std::abort();
  return 0;
}
