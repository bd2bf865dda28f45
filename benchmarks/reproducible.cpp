// reproducible [--workload NAME] [--batch N] [--microbatches V] [--repeats N] [--default-only]: the price of
// bit-exactness. Times whole training steps in the default mode (one microbatch per rank, one all-reduce) and in
// reproducible mode (V microbatches, sums in one fixed tree), alternately in one run, and prints both medians and their
// ratio. Under mpirun the ranks share the batch.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "benchmarks/workload.h"
#include "core/training/compute.h"

namespace {

using namespace muster;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double seconds(benchmarks::Workload& workload, training::Step& step, distributed::Communicator& communicator,
               uint32_t number) {
  communicator.all_gather_bytes("");  // start together
  const auto begin = std::chrono::steady_clock::now();
  benchmarks::train_step(workload, step, number);
  communicator.all_gather_bytes("");  // the slowest rank counts
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The price of bit-exactness: training steps in default and in reproducible mode");
  std::vector<std::string> names;
  int64_t batch = 32, microbatches = 8;
  int repeats = 7;
  bool default_only = false;
  app.add_option("--workload", names, "foal_net, miar_aligned, miar_unaligned (repeatable; default: all)");
  app.add_option("--batch", batch, "Samples in the global batch");
  app.add_option("--microbatches", microbatches, "V of reproducible mode");
  app.add_option("--repeats", repeats, "Timed steps of each mode");
  app.add_flag("--default-only", default_only, "Time the default mode only and print seconds per step");
  CLI11_PARSE(app, argc, argv);
  if (names.empty()) names = {"foal_net", "miar_unaligned", "miar_aligned"};

  const auto communicator = distributed::connect();
  config::Training settings;
  settings.set_reproducible(!default_only);
  settings.set_microbatches(static_cast<uint32_t>(microbatches));
  settings.set_threads(1);
  const auto compute = training::prepare_compute(settings, *communicator);
  const bool speaks = communicator->rank() == 0;
  if (speaks && !default_only) {
    std::printf("%d ranks, 1 thread each; global batch %ld; V = %ld; %s\n", communicator->size(), batch, microbatches,
                compute.numerics.c_str());
    std::printf("%-16s %14s %18s %8s\n", "workload", "default ms", "reproducible ms", "ratio");
  }
  for (const auto& name : names) {
    auto workload = benchmarks::make_workload(name, batch);
    training::Step usual(*workload.model, *workload.reader, *communicator, {});
    training::Step exact(*workload.model, *workload.reader, *communicator, {microbatches, true, false});
    std::vector<double> usual_seconds, exact_seconds;
    for (int repeat = -1; repeat < repeats; ++repeat) {
      const uint32_t number = static_cast<uint32_t>(repeat + 1);
      at::globalContext().setDeterministicAlgorithms(false, false);  // prepare_compute() has asked for it
      const double first = seconds(workload, usual, *communicator, number);
      at::globalContext().setDeterministicAlgorithms(true, false);
      const double second = default_only ? 0 : seconds(workload, exact, *communicator, number);
      if (repeat < 0) continue;  // warm-up
      usual_seconds.push_back(first);
      exact_seconds.push_back(second);
    }
    if (!speaks) continue;
    const double a = median(usual_seconds), b = median(exact_seconds);
    if (default_only)
      std::printf("%s %.6f\n", name.c_str(), a);
    else
      std::printf("%-16s %14.1f %18.1f %8.3f\n", name.c_str(), 1e3 * a, 1e3 * b, b / a);
    std::fflush(stdout);
  }
  return 0;
}
