#pragma once

#include <string>
#include <vector>

#include "checkpoints/safetensors.h"

namespace muster::checkpoints {

// One SHA-256 (64 lower-case hex digits) that says "the same model": names, dtypes, shapes and bytes of all tensors,
// whatever their order, device or file. The hash runs, in name order (byte order of UTF-8), over
//   the UTF-8 line `name dtype [d0,d1]\n`: dtype as in safetensors (F32, BF16 ...); shape without blanks, `[]` for 0-d
//   the tensor's raw bytes, row-major, little-endian
// docs/fingerprint.md recomputes it in ten lines of Python. Throws as serialize_safetensors does, and Error(kBadData)
// for a name with a line break, which could make two models' byte streams alike.
std::string fingerprint(const std::vector<NamedTensor>& tensors);

// The same over a file that was read.
std::string fingerprint(const SafetensorsFile& file);

}  // namespace muster::checkpoints
