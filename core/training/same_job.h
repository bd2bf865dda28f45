#pragma once

#include <string>
#include <vector>

#include "core/batch/standardizer.h"
#include "core/config/experiment.pb.h"
#include "core/data/dataset.h"
#include "core/models/parameters.h"
#include "distributed/communicator.h"

namespace muster::training {

// All ranks must run the same program on the same experiment, or the job would train a mixture. `experiment`: the
// resolved config and the command's options as text. Throws SharedError(kBadConfig) that names the ranks that differ.
// Collective.
void require_same_job(distributed::Communicator& communicator, const std::string& experiment);

// The encoders' descriptions and what of them is not trained: that never changes, so once is enough. Throws
// SharedError(kBadData) that names the ranks that differ. Collective.
void require_same_encoders(const config::Experiment& experiment, const models::Parameters& parameters,
                           distributed::Communicator& communicator);

// Every rank updates weights of its own by the same sums; this finds out if they are no longer, or were not from the
// start, the same bits. Throws SharedError(kInternal) that names the ranks that differ. Collective; reads all weights
// once.
void require_same_weights(const models::Parameters& parameters, const std::vector<batch::FeatureMoments>& moments,
                          distributed::Communicator& communicator);

// The dataset's SHA-256, the same on every rank. Each file is read once: a rank that opened the very file (device and
// inode) of another rank of its machine trusts that one's hash. Throws SharedError(kBadData) that names the ranks whose
// data differ. Collective.
std::string require_same_data(const data::Dataset& dataset, distributed::Communicator& communicator);

}  // namespace muster::training
