#include "core/run/environment.h"

#include <H5public.h>
#include <google/protobuf/stubs/common.h>
#include <torch/version.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/host.h"
#include "base/text.h"
#include "distributed/nccl.h"

namespace muster::run {

nlohmann::json describe_environment(distributed::Communicator& communicator, const std::string& command_line,
                                    const nlohmann::json& rank, const nlohmann::json& job) {
  nlohmann::json own = {{"rank", communicator.rank()}, {"host", host_name()}, {"process", getpid()}};
  own.update(rank);
  nlohmann::json ranks = nlohmann::json::array();
  for (const auto& text : communicator.all_gather_bytes(own.dump())) ranks.push_back(nlohmann::json::parse(text));

  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  nlohmann::json environment = {
      {"started", utc_now()},
      {"command_line", command_line},
      {"muster", {{"version", MUSTER_VERSION}, {"commit", MUSTER_GIT_COMMIT}, {"compiler", __VERSION__}}},
      {"libraries",
       {{"torch", TORCH_VERSION},
        {"mpi", distributed::mpi_library_version()},
        {"nccl", distributed::nccl_version()},
        {"hdf5", std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release)},
        {"protobuf", google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION)}}},
      {"world_size", communicator.size()},
      {"ranks", ranks}};
  environment.update(job);
  return environment;
}

}  // namespace muster::run
