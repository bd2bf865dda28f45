#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/config/experiment.pb.h"
#include "distributed/affinity.h"
#include "distributed/communicator.h"

namespace muster::training {

// Cores that this process may use (its affinity mask).
int usable_cores();

// How this rank computes: the same on every rank but for the device's number.
struct Compute {
  c10::Device device = c10::kCPU;
  std::string gpu;       // its name; empty on the CPU
  int ranks_on_gpu = 0;  // this rank included
  distributed::Affinity affinity;
  int threads = 1;
  std::string note;          // for the user, when threads are fewer than asked for
  int64_t microbatches = 1;  // pieces that every global batch is cut into
  bool reproducible = false;
  bool bf16 = false;
  // What must be alike for equal bits: processor or GPU generation, library versions, the matrix library's code path.
  // Set with reproducible only.
  std::string numerics;
};

// Pieces of each global batch in a job of so many ranks. Throws SharedError(kBadConfig) for reproducible with more
// ranks than pieces.
int64_t microbatches_of(const config::Training& training, int64_t ranks);

// Chooses this rank's device and cores and sets up threads and numerics of this process as the experiment asks. To be
// called before the first matrix product. Throws SharedError when a setting does not fit the job: kBadConfig for
// reproducible with more ranks than microbatches, or ranks whose processors differ; kUsage for GPUs that are missing or
// would have to be shared, or a wrong MUSTER_BIND. Collective.
Compute prepare_compute(const config::Training& training, distributed::Communicator& communicator);

// Several ranks on GPUs: the ranks of `communicator` joined by NCCL as well. Otherwise nothing: `communicator` will do.
// `communicator` must outlive it. Collective.
std::unique_ptr<distributed::Communicator> join_gpus(const Compute& compute, distributed::Communicator& communicator);

// For environment.json: of this rank {"threads", "local_rank", "cores", "binding", "device"}, and of the job
// {"microbatches", "numerics"}.
nlohmann::json describe_rank(const Compute& compute);
nlohmann::json describe_job(const Compute& compute);

}  // namespace muster::training
