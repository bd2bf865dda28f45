#pragma once

#include <string>

#include "core/config/experiment.pb.h"
#include "distributed/communicator.h"

namespace muster::training {

// Cores that this process may use (its affinity mask).
int usable_cores();

// How this rank computes: the same on every rank but for the device's number.
struct Compute {
  c10::Device device = c10::kCPU;
  int threads = 1;
  int64_t microbatches = 1;  // pieces that every global batch is cut into
  bool reproducible = false;
  bool bf16 = false;
  // What must be alike for equal bits: processor or GPU generation, library versions, the matrix library's code path. Set with
  // reproducible only.
  std::string arithmetic;
};

// Sets up threads and arithmetic of this process as the experiment asks. To be called before the first matrix product. Throws
// SharedError(kBadConfig) when a setting does not fit the job: reproducible with more ranks than microbatches or more than one thread, or
// ranks whose processors differ. Collective.
Compute prepare_compute(const config::Training& training, distributed::Communicator& communicator);

}  // namespace muster::training
