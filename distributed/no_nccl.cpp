#include "distributed/nccl.h"

namespace muster::distributed {

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, c10::Device) {
  throw Error(ExitCode::kUsage,
              "muster was built without CUDA: build it with ./setup.sh --device cuda, or use training.device: CPU");
}

std::string nccl_version() { return ""; }

}  // namespace muster::distributed
