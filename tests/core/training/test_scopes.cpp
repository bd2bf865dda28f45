// Autocast as a scope, and run_on_all_ranks() in a job of one.
#include <gtest/gtest.h>

#include "core/training/autocast.h"
#include "distributed/communicator.h"

namespace muster::training {
namespace {

at::ScalarType product_dtype() {
  const at::Tensor x = at::ones({2, 2});
  return at::mm(x, x).scalar_type();
}

TEST(Autocast, HoldsForItsScope) {
  EXPECT_EQ(product_dtype(), at::kFloat);
  {
    const Autocast off(false, c10::kCPU);
    EXPECT_EQ(product_dtype(), at::kFloat);
  }
  {
    const Autocast on(true, c10::kCPU);
    EXPECT_EQ(product_dtype(), at::kBFloat16);
    {
      const Autocast inner(true, c10::kCPU);
      EXPECT_EQ(product_dtype(), at::kBFloat16);
    }
    EXPECT_EQ(product_dtype(), at::kBFloat16) << "an inner scope ended the outer one";
  }
  EXPECT_EQ(product_dtype(), at::kFloat);
  EXPECT_THROW(
      {
        const Autocast on(true, c10::kCPU);
        throw std::runtime_error("x");
      },
      std::runtime_error);
  EXPECT_EQ(product_dtype(), at::kFloat);
}

TEST(Autocast, RestoresWhatWasSet) {
  at::autocast::set_autocast_dtype(at::kCPU, at::kHalf);
  { const Autocast on(true, c10::kCPU); }
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), at::kHalf);
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
}

TEST(Autocast, ForgetsCastsOfWeights) {
  const at::Tensor weight = at::ones({2, 2}).requires_grad_(), x = at::ones({2, 2});
  const auto product = [&] {
    const Autocast on(true, c10::kCPU);
    return at::mm(x, weight).detach()[0][0].item<double>();
  };
  EXPECT_EQ(product(), 2);
  {
    const at::NoGradGuard no_gradient;
    at::Tensor(weight).fill_(5);
  }
  EXPECT_EQ(product(), 10) << "a cast from before the update was used";
}

TEST(Together, OfOneRank) {
  const auto solo = distributed::make_single_process_communicator();
  int runs = 0;
  distributed::run_on_all_ranks(*solo, [&] { ++runs; });
  EXPECT_EQ(runs, 1);
  const auto outcome = [&](const std::function<void()>& work) {
    try {
      distributed::run_on_all_ranks(*solo, work);
    } catch (const SharedError& error) {
      return std::to_string(static_cast<int>(error.code())) + ": " + error.what();
    }
    return std::string("no error");
  };
  EXPECT_EQ(outcome([] { throw Error(ExitCode::kBadData, "line 3 is wrong\nand so is 4"); }),
            "65: line 3 is wrong\nand so is 4");
  EXPECT_EQ(outcome([] { throw SharedError(ExitCode::kBadConfig, "k"); }), "78: k");
  EXPECT_EQ(outcome([] { throw std::runtime_error("defect"); }), "70: defect");
  EXPECT_EQ(outcome([] { throw Error(ExitCode::kIo, ""); }), "74: ");
}

TEST(Solo, Collectives) {
  const auto solo = distributed::make_single_process_communicator();
  EXPECT_EQ(solo->rank(), 0);
  EXPECT_EQ(solo->size(), 1);
  at::Tensor x = at::arange(5).to(at::kFloat);
  solo->all_reduce_sum(x);
  EXPECT_TRUE(x.equal(at::arange(5).to(at::kFloat)));
  at::Tensor gathered = solo->all_gather_rows(x, {5});
  gathered.zero_();
  EXPECT_EQ(x[4].item<float>(), 4) << "the result must be a new tensor";
  EXPECT_EQ(solo->all_gather_bytes(std::string("a\0b", 3)), std::vector<std::string>{std::string("a\0b", 3)});
  EXPECT_EXIT(solo->abort(ExitCode::kPeerFailed), ::testing::ExitedWithCode(76), "");
}

}  // namespace
}  // namespace muster::training
