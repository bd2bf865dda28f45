#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/saver.h"
#include "distributed/threads.h"

namespace muster::checkpoints {

// A state with all that is awkward: tensors of one row and none, no elements, no dimensions, odd sizes, many dtypes.
// The values depend on `seed` alone.
inline std::vector<NamedTensor> awkward_state(int64_t seed) {
  const auto values = [&](at::IntArrayRef shape, at::ScalarType dtype) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    return at::arange(count, at::kLong).mul(2654435761 + seed).add(seed).remainder(251).view(shape).to(dtype);
  };
  return {{"layer.0.weight", values({37, 11}, at::kFloat)},
          {"layer.0.bias", values({37}, at::kFloat)},
          {"layer.1.weight", values({3, 5, 7}, at::kDouble)},
          {"one row", values({1, 300}, at::kFloat)},
          {"steps", values({}, at::kLong)},
          {"none", values({0, 4}, at::kFloat)},
          {"half", values({13, 3}, at::kHalf)},
          {"no columns", values({4, 0}, at::kShort)},
          {"bfloat16", values({9}, at::kBFloat16)},
          {"bytes", values({101}, at::kByte)},
          {"mask", values({17, 3}, at::kLong).remainder(2).to(at::kBool)},
          {"Gefühl", values({6, 2}, at::kInt)}};
}

inline void expect_same(const std::map<std::string, at::Tensor>& loaded, const std::vector<NamedTensor>& expected) {
  EXPECT_EQ(loaded.size(), expected.size());
  for (const auto& [name, tensor] : expected) {
    ASSERT_EQ(loaded.count(name), 1u) << name;
    const at::Tensor& ours = loaded.at(name);
    EXPECT_EQ(ours.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(ours.sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(at::equal(ours, tensor)) << name;
  }
}

// Saves one checkpoint on `ranks` ranks; its outcome, which all ranks agree on.
inline SaveOutcome save_on(int ranks, const std::string& folder, const CheckpointInfo& info,
                           const std::vector<NamedTensor>& tensors, bool asynchronous = false,
                           const Retention& retention = {100, 0, 0}) {
  std::vector<SaveOutcome> outcomes(ranks);
  distributed::run_as_threads(ranks, [&](distributed::Communicator& communicator) {
    CheckpointSaver saver(folder, retention, asynchronous, communicator);
    auto got = saver.save(info, tensors);
    if (asynchronous) {
      EXPECT_TRUE(got.empty());
      if (auto last = saver.finish()) got.push_back(*last);
    }
    ASSERT_EQ(got.size(), 1u);
    EXPECT_FALSE(saver.in_flight());
    outcomes[communicator.rank()] = got[0];
  });
  for (const SaveOutcome& each : outcomes) {
    EXPECT_EQ(each.step, outcomes[0].step);
    EXPECT_EQ(each.committed, outcomes[0].committed);
    EXPECT_EQ(each.error, outcomes[0].error);
    EXPECT_EQ(each.stall_seconds, outcomes[0].stall_seconds);
    EXPECT_EQ(each.bytes, outcomes[0].bytes);
  }
  return outcomes[0];
}

// The newest whole checkpoint, as loaded by all of `ranks` ranks; the reasons for what was passed over.
inline std::optional<LoadedCheckpoint> load_on(int ranks, const std::string& folder,
                                               std::vector<std::string>* damaged = nullptr) {
  std::vector<std::optional<LoadedCheckpoint>> loaded(ranks);
  std::vector<std::vector<std::string>> reasons(ranks);
  distributed::run_as_threads(ranks, [&](distributed::Communicator& communicator) {
    loaded[communicator.rank()] = load_newest_checkpoint(folder, communicator, reasons[communicator.rank()]);
  });
  for (int rank = 1; rank < ranks; ++rank) {
    EXPECT_EQ(reasons[rank], reasons[0]);
    EXPECT_EQ(loaded[rank].has_value(), loaded[0].has_value());
    if (!loaded[rank] || !loaded[0]) continue;
    EXPECT_EQ(loaded[rank]->checkpoint.info.step, loaded[0]->checkpoint.info.step);
    for (const auto& [name, tensor] : loaded[0]->tensors)
      EXPECT_TRUE(at::equal(loaded[rank]->tensors.at(name), tensor)) << name;
  }
  if (damaged) *damaged = reasons[0];
  return loaded[0];
}

inline std::string error_of(ExitCode code, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace muster::checkpoints
