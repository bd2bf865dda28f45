// libFuzzer: parse_manifest, on a file, and on a body whose checksum fits. What it takes must be what would be written.
#include <cstdlib>

#include "base/crc32c.h"
#include "base/error.h"
#include "checkpoints/manifest.h"
#include "checkpoints/manifest.pb.h"

namespace checkpoints = muster::checkpoints;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 8 != 0) {
    checkpoints::wire::Sealed sealed;
    sealed.set_format_version(1);
    sealed.set_body_crc32c(crc32c(bytes));
    sealed.set_body(bytes);
    bytes = sealed.SerializeAsString();
  }
  checkpoints::Manifest manifest;
  try {
    manifest = checkpoints::parse_manifest(bytes, "manifest");
  } catch (const muster::Error& error) {
    if (error.code() != muster::ExitCode::kBadData) std::abort();
    return 0;
  }
  if (checkpoints::serialize_manifest(manifest) != bytes) std::abort();
  return 0;
}
