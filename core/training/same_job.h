#pragma once

#include <string>

#include "core/data/dataset.h"
#include "distributed/communicator.h"

namespace muster::training {

// All ranks must run the same program on the same experiment, or the job would train a mixture. `experiment`: the resolved config as text.
// Throws SharedError(kBadConfig) that names the ranks that differ. Collective.
void require_same_job(distributed::Communicator& communicator, const std::string& experiment);

// The dataset's SHA-256, the same on every rank. Each file is read once: a rank that opened the very file (device and inode) of another
// rank of its machine trusts that one's hash. Throws SharedError(kBadData) that names the ranks whose data differ. Collective.
std::string require_same_data(const data::Dataset& dataset, distributed::Communicator& communicator);

}  // namespace muster::training
