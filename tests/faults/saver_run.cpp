#include "tests/faults/saver_run.h"

#include <ATen/Parallel.h>

#include <cstdio>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "checkpoints/fingerprint.h"
#include "checkpoints/saver.h"
#include "distributed/threads.h"

namespace muster::faults {
namespace {

constexpr uint64_t kSteps = 5, kBestStep = 2;

void run(const std::string& folder, const std::string& report, bool asynchronous,
         distributed::Communicator& communicator) {
  at::set_num_threads(1);
  distributed::run_on_all_ranks(communicator, [&] {
    if (communicator.rank() == 0) checkpoints::sweep_leftovers(folder);
  });
  std::vector<std::string> damaged;
  const auto loaded = checkpoints::load_newest_checkpoint(folder, communicator, damaged);
  if (!damaged.empty()) throw Error(ExitCode::kBadData, "damaged: " + damaged[0]);
  const uint64_t from = loaded ? loaded->checkpoint.info.step : 0;
  if (loaded && loaded->checkpoint.info.training_state != "state of step " + std::to_string(from))
    throw Error(ExitCode::kBadData, "the training state is of another step");
  std::vector<checkpoints::NamedTensor> tensors = {
      {"weight", at::zeros({7, 5})}, {"bias", at::zeros({3}, at::kDouble)}, {"count", at::zeros({}, at::kLong)}};
  if (loaded)
    for (auto& [name, tensor] : tensors) tensor.copy_(loaded->tensors.at(name));

  checkpoints::CheckpointSaver saver(folder, {1, 1, 0}, asynchronous, communicator);
  for (uint64_t step = from + 1; step <= kSteps; ++step) {
    tensors[0].tensor.mul_(0.5).add_(at::arange(35).view({7, 5}), static_cast<double>(step));
    tensors[1].tensor.add_(1.0 / static_cast<double>(step));
    tensors[2].tensor.add_(static_cast<int64_t>(step));
    saver.handle(communicator.all_gather_bytes(saver.pending_message()));
    checkpoints::CheckpointInfo info;
    info.step = step;
    info.training_state = "state of step " + std::to_string(step);
    info.score = {"UA", step == kBestStep ? 1.0 : 0.5, true};
    saver.save(info, tensors);
  }
  saver.finish();
  if (communicator.rank() == 0) std::ofstream(report) << from << " " << checkpoints::fingerprint(tensors);
}

}  // namespace

int run_saver(const std::string& folder, const std::string& report, int ranks, bool asynchronous) {
  try {
    distributed::run_as_threads(
        ranks, [&](distributed::Communicator& communicator) { run(folder, report, asynchronous, communicator); });
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "internal error: %s\n", error.what());
    return 70;
  }
}

}  // namespace muster::faults
