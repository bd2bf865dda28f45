#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "distributed/cuda_devices.h"

namespace muster::gpu {

// Empty when this process can compute on a GPU.
inline std::string why_no_gpu() {
  static const std::string why = distributed::visible_gpus().why_none;
  return why;
}

inline bool gpu_required() {
  const char* required = std::getenv("MUSTER_REQUIRE_GPU");
  return required && std::strcmp(required, "1") == 0;
}

// Without a GPU a test is skipped, saying why; with MUSTER_REQUIRE_GPU=1 it fails: for machines that are there to run
// it.
class Gpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (why_no_gpu().empty()) return;
    if (gpu_required()) FAIL() << "MUSTER_REQUIRE_GPU=1, but " << why_no_gpu();
    GTEST_SKIP() << why_no_gpu();
  }

  const c10::Device device_{c10::kCUDA, 0};
};

}  // namespace muster::gpu
