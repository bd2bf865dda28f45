// checkpoint --folder DIR [--parameters N] [--saves K]: how long a checkpoint blocks training. Saves a state like that
// of Adam (fp32 parameters and two moments) K times asynchronously and K times synchronously, alternately; under mpirun
// the ranks share the bytes. Prints, per save: mode, seconds that training was blocked, seconds until it was committed,
// bytes. checkpoint.py compares with PyTorch's distributed checkpoint.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/error.h"
#include "benchmarks/measure.h"
#include "checkpoints/saver.h"

namespace {

using namespace muster;

constexpr int64_t kWidth = 1024;

std::vector<checkpoints::NamedTensor> state_of(int64_t parameters) {
  std::vector<checkpoints::NamedTensor> state;
  for (int64_t done = 0; done < parameters; done += kWidth * kWidth) {
    const int64_t rows = std::min(kWidth, (parameters - done + kWidth - 1) / kWidth);
    const std::string name = fmt::format("layer.{}.weight", done / kWidth / kWidth);
    for (const char* kind : {"", ".exp_avg", ".exp_avg_sq"}) state.push_back({name + kind, at::rand({rows, kWidth})});
  }
  return state;
}

void run(const std::string& folder, int64_t parameters, int saves) {
  const auto communicator = distributed::connect();
  at::set_num_threads(1);
  const auto state = state_of(parameters);
  checkpoints::CheckpointSaver asynchronous(folder, {1, 0, 0}, true, *communicator),
      synchronous(folder, {1, 0, 0}, false, *communicator);
  asynchronous.prepare(state);
  checkpoints::CheckpointInfo info;
  // Alternately, so that whatever else the machine does affects both. One untimed save first: the system's cache grows
  // with it, once.
  for (int save = -1; save < 2 * saves; ++save) {
    const bool waits = save % 2 != 0;
    checkpoints::CheckpointSaver& saver = waits ? synchronous : asynchronous;
    ++info.step;
    communicator->all_gather_bytes("");  // start together
    std::vector<checkpoints::SaveOutcome> outcomes;
    const double whole = benchmarks::seconds([&] {
      outcomes = saver.save(info, state);
      if (auto outcome = saver.finish()) outcomes.push_back(*outcome);
    });
    if (!outcomes.at(0).committed) throw SharedError(ExitCode::kIo, outcomes[0].error);
    if (communicator->rank() != 0 || save < 0) continue;
    std::printf("%s %.4f %.4f %lu\n", waits ? "sync" : "async", outcomes[0].stall_seconds, whole,
                static_cast<unsigned long>(outcomes[0].bytes));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("How long a checkpoint blocks training");
  std::string folder;
  int64_t parameters = 300'000'000;
  int saves = 3;
  app.add_option("--folder", folder, "Where the checkpoints go")->required();
  app.add_option("--parameters", parameters, "Parameters; there are two moments of each");
  app.add_option("--saves", saves, "Saves in each mode");
  CLI11_PARSE(app, argc, argv);
  try {
    run(folder, parameters, saves);
  } catch (const muster::Error& error) {
    std::fprintf(stderr, "checkpoint: %s\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
