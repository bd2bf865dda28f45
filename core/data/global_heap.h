#pragma once

#include <hdf5.h>

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace muster::data::hdf5 {

// HDF5 keeps variable-length strings in "global heap collections" and stores references to them. HDF5 1.10 trusts every
// length in there: one flipped bit makes it write past its buffers. So muster lets HDF5 deliver the references and
// follows them itself, checking each step (HDF5 File Format Specification 3.0, section III.E).

// What is stored in place of a string: length (4 bytes), address of the collection (8), index in it (4), little-endian.
using StringReference = std::array<unsigned char, 16>;

// Memory type that makes H5Dread and H5Aread of variable-length strings deliver StringReferences. Owned by the caller.
hid_t string_reference_type();

// The collections of one file, read when first needed.
class GlobalHeap {
 public:
  // `base`: size of the user block, from which addresses count.
  GlobalHeap(int descriptor, int64_t base, int64_t file_bytes)
      : descriptor_(descriptor), base_(base), file_bytes_(file_bytes) {}

  // Throws Problem (without the place, which only the caller knows) when the reference leads nowhere.
  std::string text(const StringReference& reference);

 private:
  struct Collection {
    std::vector<char> bytes;
    std::map<uint64_t, std::pair<uint64_t, uint64_t>> objects;  // index -> first byte, size
  };
  const Collection& collection(uint64_t address);

  const int descriptor_;
  const int64_t base_;
  const int64_t file_bytes_;
  int64_t bytes_held_ = 0;
  std::map<uint64_t, Collection> collections_;
};

}  // namespace muster::data::hdf5
