#include "core/training/compute.h"

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "distributed/communicator.h"

using namespace muster;

// Kernels choose by it what gives the same bits (kernels/linear.h).
TEST(Compute, AsksForEqualBitsOnACpuToo) {
  const auto solo = distributed::make_single_process_communicator();
  config::Training training;
  training.set_device(config::Training::CPU);
  training::prepare_compute(training, *solo);
  EXPECT_FALSE(at::globalContext().deterministicAlgorithms());
  training.set_reproducible(true);
  training::prepare_compute(training, *solo);
  EXPECT_TRUE(at::globalContext().deterministicAlgorithms());
  EXPECT_FALSE(at::globalContext().deterministicFillUninitializedMemory());
  at::globalContext().setDeterministicAlgorithms(false, false);
}
