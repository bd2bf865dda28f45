#include <gtest/gtest.h>

#include <limits>

#include "core/training/finite_guard.h"

namespace muster::training {
namespace {

at::Tensor number(double value) { return at::scalar_tensor(value, at::kDouble); }

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(FiniteGuard, LetsFiniteStepsPass) {
  FiniteGuard guard(c10::kCPU);
  for (uint64_t step = 0; step < 3; ++step) EXPECT_EQ(guard.check(step, number(1), number(0)).item<float>(), 0);
  EXPECT_EQ(guard.poll(), std::nullopt);
}

TEST(FiniteGuard, HoldsTheWeightsUntilTheHostLooks) {
  for (const auto& [loss, norm] : {std::pair{kNan, 1.0}, {1.0, kInfinity}, {-kInfinity, kNan}}) {
    FiniteGuard guard(c10::kCPU);
    EXPECT_EQ(guard.check(0, number(1), number(1)).item<float>(), 0);
    EXPECT_EQ(guard.check(1, number(loss), number(norm)).item<float>(), 1);
    EXPECT_EQ(guard.check(2, number(1), number(1)).item<float>(), 1)
        << "a finite step after a bad one must not change the weights";
    EXPECT_EQ(guard.check(3, number(kNan), number(1)).item<float>(), 1);
    EXPECT_EQ(guard.poll(), std::optional<uint64_t>(1)) << "the first one counts";
    EXPECT_EQ(guard.poll(), std::nullopt);
    EXPECT_EQ(guard.check(4, number(1), number(1)).item<float>(), 0);
  }
}

TEST(FiniteGuard, TheFirstStepCanBeTheBadOne) {
  FiniteGuard guard(c10::kCPU);
  guard.check(0, number(kNan), number(1));
  EXPECT_EQ(guard.poll(), std::optional<uint64_t>(0));
}

}  // namespace
}  // namespace muster::training
