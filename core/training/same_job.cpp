#include "core/training/same_job.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/host.h"
#include "base/sha256.h"
#include "core/run/kept_encoders.h"
#include "distributed/collective_call.h"

namespace muster::training {
namespace {

// What is the same file for two ranks: host, device and inode; and its size and time, in case it was replaced in
// between.
std::string identity(const data::Dataset& dataset) {
  struct stat file {};
  if (::stat(dataset.source().c_str(), &file) != 0) return fmt::format("{} {}", host_name(), dataset.source());
  return fmt::format("{} {} {} {} {}.{}", host_name(), file.st_dev, file.st_ino, file.st_size, file.st_mtim.tv_sec,
                     file.st_mtim.tv_nsec);
}

}  // namespace

void require_same_job(distributed::Communicator& communicator, const std::string& experiment) {
  if (communicator.size() == 1) return;
  const distributed::CollectiveLabel label("same job");
  distributed::require_same(communicator, "the muster program", sha256_of_file("/proc/self/exe"),
                            "Start the same build on every node (a shared path, or the same container)");
  distributed::require_same(communicator, "the experiment", sha256_of(experiment),
                            "Give every rank the same config file and the same options");
}

void require_same_weights(const models::Parameters& parameters, const std::vector<batch::FeatureMoments>& moments,
                          distributed::Communicator& communicator) {
  if (communicator.size() == 1) return;
  const distributed::CollectiveLabel label("same weights");
  Sha256 hash;
  const auto add = [&](const at::Tensor& tensor) {
    const at::Tensor host = tensor.cpu().contiguous();
    hash.update({static_cast<const char*>(host.data_ptr()), host.nbytes()});
  };
  add(parameters.values());
  for (const auto& moment : moments) {
    add(moment.mean);
    add(moment.standard_deviation);
  }
  distributed::require_same(communicator, "the model's weights", hash.hex(),
                            "Ranks that start from different weights files, or whose processors or libraries round "
                            "differently, train different "
                            "models: give all of them the same files and one kind of node",
                            ExitCode::kInternal);
}

void require_same_encoders(const config::Experiment& experiment, const models::Parameters& parameters,
                           distributed::Communicator& communicator) {
  if (experiment.encoders_size() == 0) return;
  const distributed::CollectiveLabel label("same encoders");
  Sha256 hash;
  distributed::run_on_all_ranks(communicator, [&] {
    hash.update(run::encoder_descriptions(experiment));
    const at::Tensor frozen = parameters.frozen().cpu().contiguous();
    hash.update({static_cast<const char*>(frozen.data_ptr()), frozen.nbytes()});
  });
  distributed::require_same(
      communicator, "what the encoders are (config.json, preprocessor_config.json, frozen weights)", hash.hex(),
      "Copy the same folders to every node, or name those on a shared file system", ExitCode::kBadData);
}

std::string require_same_data(const data::Dataset& dataset, distributed::Communicator& communicator) {
  const distributed::CollectiveLabel label("same data");
  const auto identities = communicator.all_gather_bytes(identity(dataset));
  const auto first =
      std::find(identities.begin(), identities.end(), identities[communicator.rank()]) - identities.begin();
  std::string hash;
  distributed::run_on_all_ranks(communicator, [&] {
    if (first == communicator.rank()) hash = dataset.content_hash();
  });
  hash = communicator.all_gather_bytes(hash)[first];
  distributed::require_same(communicator, fmt::format("the data ({})", dataset.source()), hash,
                            "Copy the same file to every node, or name one on a shared file system",
                            ExitCode::kBadData);
  return hash;
}

}  // namespace muster::training
