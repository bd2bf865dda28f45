#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/manifest.h"
#include "checkpoints/retention.h"

// Writes a checkpoint so that it is on the disk whole or not at all, whatever fails and whenever. The calls that change
// the disk are write, fsync, rename, unlink, mkdir and rmdir.
namespace muster::checkpoints {

// One attempt to save. All ranks have the same.
struct SaveAttempt {
  std::string folder;  // of the checkpoints
  uint64_t step = 0;
  std::string uuid;

  std::string temporary() const;  // the hidden folder that the ranks write into
  std::string committed() const;  // its name once it is whole
};

// Each rank: writes its shard into the temporary folder and flushes it to the device. When the device fails, the file
// is written again under another name: after a failed fsync the system may consider lost pages written. Throws
// Error(kIo); before writing, when the free space is too small for what is missing of all `bytes` of the checkpoint.
CheckpointFile write_shard(const SaveAttempt& attempt, int rank, int ranks,
                           const std::vector<std::string_view>& contents, uint64_t bytes);

// One rank, after all have written: writes the manifest, then gives the folder its name. A damaged checkpoint of the
// same step is set aside (.bad-*); a whole one is hidden, and its path returned, to be removed. Throws Error(kIo); what
// was committed before is then unchanged.
std::string commit(const SaveAttempt& attempt, const Manifest& manifest);

// One rank: removes what the attempt has written. Throws Error(kIo).
void discard(const SaveAttempt& attempt);

}  // namespace muster::checkpoints
