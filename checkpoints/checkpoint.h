#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/safetensors.h"
#include "distributed/communicator.h"

// A checkpoint is a folder `step-<8 digits or more>` in the checkpoints folder of a run:
//   rank-<r>-of-<w>.safetensors   each writing rank's share, about 1/w of the bytes; opens with any safetensors library
//   MANIFEST.pb                    written last; says what the folder must hold (manifest.proto)
// A folder of that name is committed: it got its name after every byte had reached the device. Unfinished checkpoints
// and those being deleted have other, hidden names.
namespace muster::checkpoints {

// The metric that a run is judged by, for the weights of a checkpoint, if they were evaluated at that very step.
struct Score {
  std::string name;  // as in the experiment; empty: not evaluated at this step
  double value = std::numeric_limits<double>::quiet_NaN();
  bool higher_is_better = true;
};

// What a checkpoint holds besides its tensors. The texts are opaque here.
struct CheckpointInfo {
  uint64_t step = 0;  // steps done
  int64_t epoch = 0;
  uint64_t seed = 0;
  Score score;
  std::string config;          // the resolved experiment
  std::string training_state;  // whatever the training loop needs to continue
};

struct CheckpointFile {
  std::string name;  // in the folder: no slash
  uint64_t size = 0;
  uint32_t crc32c = 0;
};

// A committed checkpoint, from its manifest alone.
struct Checkpoint {
  std::string path;
  CheckpointInfo info;
  int world_size = 0;  // ranks that wrote it
  std::vector<CheckpointFile> files;
  uint64_t bytes = 0;  // of the files
};

// Found by its name; nothing else is checked.
struct FoundCheckpoint {
  std::string path;
  uint64_t step = 0;
};

// Newest first. A folder that does not exist holds none. Throws Error(kIo) when it cannot be read.
std::vector<FoundCheckpoint> find_checkpoints(const std::string& folder);

// Reads and checks the manifest; the other files are only looked up (present, ordinary, of the right size). Throws
// Error(kBadData) with what is wrong, Error(kIo) if it cannot be read.
Checkpoint read_manifest(const std::string& path);

// Reads every byte: sizes, CRC32C, headers, and that the shards cover each tensor of the table once, without gap or
// overlap. Throws as read_manifest does. progress: bytes done, of all.
Checkpoint verify_checkpoint(const std::string& path, const std::function<void(uint64_t, uint64_t)>& progress = {});

struct LoadedCheckpoint {
  Checkpoint checkpoint;
  std::map<std::string, at::Tensor> tensors;  // whole, on the CPU, on every rank
};

// Reads and verifies a checkpoint on any number of ranks: each file is read by one rank, which sends its tensors to the
// others. Throws SharedError: kBadData for damage, kIo for what cannot be read. Collective.
LoadedCheckpoint load_checkpoint(const std::string& path, distributed::Communicator& communicator);

// The newest checkpoint in `folder` that is whole. Ranks fall back together from damaged ones; `damaged` gets their
// reasons, newest first. Nothing when there is no checkpoint at all. Throws SharedError(kBadData) when there are some
// but none is whole, which needs a person. Collective.
std::optional<LoadedCheckpoint> load_newest_checkpoint(const std::string& folder,
                                                       distributed::Communicator& communicator,
                                                       std::vector<std::string>& damaged);

}  // namespace muster::checkpoints
