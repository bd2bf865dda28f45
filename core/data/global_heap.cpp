#include "core/data/global_heap.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/problems.h"

namespace muster::data::hdf5 {
namespace {

constexpr uint64_t header_bytes = 16;  // of a collection, and of an object in it
constexpr const char* damaged = "its strings cannot be read: the file is damaged";

uint64_t little_endian(const void* bytes, int count) {
  uint64_t value = 0;
  for (int i = count; i-- > 0;) value = (value << 8) | static_cast<const unsigned char*>(bytes)[i];
  return value;
}

// An HDF5 "conversion" from a stored variable-length string to an opaque value of the same size: the bytes stay as they
// are.
herr_t keep_reference(hid_t source, hid_t target, H5T_cdata_t* data, size_t, size_t, size_t, void*, void*, hid_t) {
  if (data->command != H5T_CONV_INIT) return 0;
  data->need_bkg = H5T_BKG_NO;
  const bool fits = H5Tget_size(source) == sizeof(StringReference) && H5Tget_size(target) == sizeof(StringReference);
  return fits && H5Tis_variable_str(source) > 0 ? 0 : -1;
}

bool read_all(int descriptor, int64_t position, void* out, size_t count) {
  char* next = static_cast<char*>(out);
  while (count > 0) {
    const ssize_t got = pread(descriptor, next, count, position);
    if (got <= 0) return false;
    next += got;
    position += got;
    count -= static_cast<size_t>(got);
  }
  return true;
}

}  // namespace

hid_t string_reference_type() {
  static const bool registered = [] {
    const hid_t strings = H5Tcopy(H5T_C_S1);
    const hid_t opaque = H5Tcreate(H5T_OPAQUE, sizeof(StringReference));
    H5Tset_size(strings, H5T_VARIABLE);
    H5Tregister(H5T_PERS_SOFT, "muster string reference", strings, opaque, &keep_reference);
    H5Tclose(opaque);
    H5Tclose(strings);
    return true;
  }();
  static_cast<void>(registered);
  return H5Tcreate(H5T_OPAQUE, sizeof(StringReference));
}

const GlobalHeap::Collection& GlobalHeap::collection(uint64_t address) {
  if (const auto found = collections_.find(address); found != collections_.end()) return found->second;
  const auto room = static_cast<uint64_t>(file_bytes_ - base_);
  if (address > room || room - address < header_bytes) throw Problem(damaged);
  const int64_t position = base_ + static_cast<int64_t>(address);
  char header[header_bytes];
  if (!read_all(descriptor_, position, header, sizeof(header))) throw Problem(damaged);
  const uint64_t size = little_endian(header + 8, 8);
  if (std::memcmp(header, "GCOL", 4) != 0 || header[4] != 1 || size < header_bytes || size > room - address)
    throw Problem(damaged);
  bytes_held_ += static_cast<int64_t>(size);
  if (bytes_held_ > file_bytes_) throw Problem(damaged);  // overlapping collections could fill any memory
  Collection result;
  result.bytes.resize(size);
  if (!read_all(descriptor_, position, result.bytes.data(), size)) throw Problem(damaged);
  for (uint64_t place = header_bytes; size - place >= header_bytes;) {
    const uint64_t index = little_endian(result.bytes.data() + place, 2);
    const uint64_t bytes = little_endian(result.bytes.data() + place + 8, 8);
    place += header_bytes;
    if (index == 0) break;  // the free space, always last
    if (bytes > size - place) throw Problem(damaged);
    result.objects[index] = {place, bytes};
    place += bytes;
    place += std::min((8 - place % 8) % 8, size - place);
  }
  return collections_[address] = std::move(result);
}

std::string GlobalHeap::text(const StringReference& reference) {
  const uint64_t length = little_endian(reference.data(), 4);
  const uint64_t address = little_endian(reference.data() + 4, 8);
  const uint64_t index = little_endian(reference.data() + 12, 4);
  if (length == 0) return "";
  const Collection& found = collection(address);
  const auto object = found.objects.find(index);
  if (object == found.objects.end() || length > object->second.second) throw Problem(damaged);
  const char* begin = found.bytes.data() + object->second.first;
  return std::string(begin, strnlen(begin, length));
}

}  // namespace muster::data::hdf5
