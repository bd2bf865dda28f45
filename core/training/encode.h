#pragma once

#include <cstdint>
#include <string>

#include "core/config/experiment.pb.h"
#include "core/run/progress.h"
#include "distributed/communicator.h"

namespace muster::training {

// What `muster data encode` has written.
struct EncodedData {
  int64_t samples = 0;
  int64_t found = 0;  // of them, encoded by an earlier call that was interrupted
};

// Extracts features: runs the experiment's encoders as they are in their folders, without dropout, over all samples of
// its data, each rank at a share, and writes a dataset at `output` in which the encoded modalities hold their features
// and all else is as it was, but for further targets. The result does not depend on the number of ranks. Finished
// pieces wait in "<output>.parts", so that an interrupted call continues, on any number of ranks; the folder is removed
// at the end. Throws Error(kUsage) when the experiment has no encoders or that folder belongs to other data, encoders
// or settings; SharedError(kRequeue) when it was asked to stop (core/run/stop.h), which is for the caller to catch
// before: what is finished by then is kept; otherwise as open_data(). Collective.
EncodedData encode_dataset(const config::Experiment& experiment, const std::string& output,
                           distributed::Communicator& communicator, run::Progress& progress);

}  // namespace muster::training
