// The tiled contrastive loss against the same loss written plainly over N x N matrices and differentiated by LibTorch.
#include "core/losses/contrastive.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/losses/alignment.h"
#include "core/losses/avel.h"
#include "tests/helpers/rounding.h"

namespace muster::losses {
namespace {

at::Tensor plain_loss(const at::Tensor& u, const at::Tensor& v, const at::Tensor& scale, const at::Tensor& labels,
                      PairTargets kind) {
  const at::Tensor similarity = at::mm(u, v.t()) * scale;
  at::Tensor targets = kind == PairTargets::kOwn ? at::eye(u.size(0), u.options())
                                                 : labels.unsqueeze(1).eq(labels.unsqueeze(0)).to(u.scalar_type());
  if (kind == PairTargets::kClassMean) targets = targets / targets.sum(1, true);
  const at::Tensor log_probabilities = at::log_softmax(similarity, 1) + at::log_softmax(similarity.t(), 1);
  return (targets * log_probabilities).sum() * (-0.5 / static_cast<double>(u.size(0)));
}

struct Inputs {
  at::Tensor u, v, labels;

  Inputs(int64_t rows, int64_t dim, int64_t classes, at::ScalarType dtype) {
    const auto unit = [&] {
      const at::Tensor x = at::randn({rows, dim}, at::kDouble);
      return (x / x.norm(2, {1}, true)).to(dtype);
    };
    u = unit(), v = unit(), labels = at::randint(classes, {rows}, at::kLong);
  }
};

struct Result {
  at::Tensor loss, u, v, parameter;  // the value and the gradients
};

// loss(u, v, parameter), and its gradients times 3, which an upstream factor makes them.
template <typename Loss>
Result differentiate(const Loss& loss, const at::Tensor& u, const at::Tensor& v, double parameter,
                     at::ScalarType dtype) {
  const at::Tensor a = u.to(dtype).detach().clone().requires_grad_(), b = v.to(dtype).detach().clone().requires_grad_();
  const at::Tensor p = at::scalar_tensor(parameter, dtype).requires_grad_();
  const at::Tensor value = loss(a, b, p);
  torch::autograd::backward({value * 3}, {});
  return {value.detach(), a.grad(), b.grad(), p.grad()};
}

// |actual - expected| <= tolerance * max(|expected|, unit), by maxima.
void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance, double unit,
                  const std::string& what) {
  const double error = (actual.to(at::kDouble) - expected).abs().max().item<double>();
  EXPECT_LE(error, tolerance * std::max(unit, expected.abs().max().item<double>())) << what;
}

void expect_close(const Result& actual, const Result& expected, double tolerance, double scale,
                  const std::string& what) {
  const double unit = 1.0 / static_cast<double>(expected.u.size(0));
  expect_close(actual.loss, expected.loss, tolerance, scale, what + ", loss");
  expect_close(actual.u, expected.u, tolerance, scale * unit, what + ", gradient of u");
  expect_close(actual.v, expected.v, tolerance, scale * unit, what + ", gradient of v");
  expect_close(actual.parameter, expected.parameter, tolerance, 1, what + ", gradient of the scale");
}

// In float32, with the same loss written plainly as PyTorch's; `scale`: the largest factor of a similarity.
void expect_as_exact_as_pytorch(const Result& ours, const Result& theirs, const Result& truth, double scale,
                                const std::string& what) {
  const double unit = 1.0 / static_cast<double>(truth.u.size(0));
  muster::expect_as_exact_as_pytorch(ours.loss, theirs.loss, truth.loss, scale, what + ", loss");
  muster::expect_as_exact_as_pytorch(ours.u, theirs.u, truth.u, scale * unit, what + ", gradient of u");
  muster::expect_as_exact_as_pytorch(ours.v, theirs.v, truth.v, scale * unit, what + ", gradient of v");
  muster::expect_as_exact_as_pytorch(ours.parameter, theirs.parameter, truth.parameter, 1,
                                     what + ", gradient of the scale");
}

TEST(Contrastive, EqualsThePlainLossAndItsGradients) {
  at::manual_seed(11);
  for (const int64_t rows : {1, 2, 7, 255, 256, 257, 1100, 2500})
    for (const auto kind : {PairTargets::kOwn, PairTargets::kClassMean, PairTargets::kClassSum})
      for (const double scale : {0.37, 14.3, -2.0}) {
        if (rows > 300 && scale != 14.3) continue;
        if (rows > 2000 && kind != PairTargets::kClassMean) continue;
        const Inputs in(rows, 24, 5, at::kFloat);  // exact in both precisions
        const auto plain = [&](const auto& u, const auto& v, const auto& s) {
          return plain_loss(u, v, s, in.labels, kind);
        };
        const auto tiled = [&](const auto& u, const auto& v, const auto& s) {
          return contrastive_loss(u, v, s, in.labels, kind);
        };
        const std::string what = std::to_string(rows) + " rows, targets " + std::to_string(static_cast<int>(kind)) +
                                 ", scale " + std::to_string(scale);
        const double single = static_cast<double>(static_cast<float>(scale));
        const Result expected = differentiate(plain, in.u, in.v, single, at::kDouble);
        expect_close(differentiate(tiled, in.u, in.v, single, at::kDouble), expected, 1e-12, 1, what + ", float64");
        expect_as_exact_as_pytorch(differentiate(tiled, in.u, in.v, single, at::kFloat),
                                   differentiate(plain, in.u, in.v, single, at::kFloat), expected, std::abs(scale),
                                   what + ", float32");
      }
}

TEST(Contrastive, AvelInAllTemperatureModes) {
  at::manual_seed(12);
  using Kind = Similarity::Kind;
  const struct {
    Kind kind;
    double temperature;
  } modes[] = {{Kind::kExpScale, 2.659}, {Kind::kDivisor, 2.659}, {Kind::kDivisor, 0.07}, {Kind::kDivisor, -0.5}};
  for (const auto& mode : modes)
    for (const auto targets : {AvelTargets::kRowMean, AvelTargets::kRowSum}) {
      const Inputs in(300, 16, 4, at::kDouble);
      const auto plain = [&](const at::Tensor& u, const at::Tensor& v, const at::Tensor& t) {
        return plain_loss(u, v, mode.kind == Kind::kExpScale ? t.exp() : 1 / t, in.labels,
                          targets == AvelTargets::kRowMean ? PairTargets::kClassMean : PairTargets::kClassSum);
      };
      const auto tiled = [&](const at::Tensor& u, const at::Tensor& v, const at::Tensor& t) {
        return avel_loss(u, v, in.labels, {mode.kind, t}, targets);
      };
      expect_close(differentiate(tiled, in.u, in.v, mode.temperature, at::kDouble),
                   differentiate(plain, in.u, in.v, mode.temperature, at::kDouble), 1e-12, 1,
                   std::to_string(mode.temperature));
    }
}

TEST(Contrastive, OneLabelAndAllDifferentLabels) {
  at::manual_seed(13);
  Inputs in(520, 16, 4, at::kDouble);
  for (const at::Tensor& labels : {at::full({520}, 7, at::kLong), at::randperm(520, at::kLong) - 100})
    for (const auto kind : {PairTargets::kClassMean, PairTargets::kClassSum})
      expect_close(
          differentiate(
              [&](const auto& u, const auto& v, const auto& s) { return contrastive_loss(u, v, s, labels, kind); },
              in.u, in.v, 5, at::kDouble),
          differentiate([&](const auto& u, const auto& v, const auto& s) { return plain_loss(u, v, s, labels, kind); },
                        in.u, in.v, 5, at::kDouble),
          1e-12, 1, "labels");
}

// Rows that agree with everything beside columns that agree with nothing: similarities from -100 to 100, where exp
// alone overflows and one common shift underflows whole columns.
TEST(Contrastive, WithstandsAScaleOf100InSinglePrecision) {
  at::manual_seed(14);
  const int64_t rows = 600;
  Inputs in(rows, 8, 3, at::kFloat);
  in.v.slice(0, 0, 200).copy_(in.u.slice(0, 0, 200));
  in.v.slice(0, 200, 400).copy_(-in.u[0].expand({200, 8}));
  in.u.slice(0, 250, 600).copy_(in.u[0].expand({350, 8}));
  for (const auto kind : {PairTargets::kOwn, PairTargets::kClassMean, PairTargets::kClassSum}) {
    const auto plain = [&](const auto& u, const auto& v, const auto& s) {
      return plain_loss(u, v, s, in.labels, kind);
    };
    const Result expected = differentiate(plain, in.u, in.v, 100, at::kDouble);
    const auto tiled = [&](const auto& u, const auto& v, const auto& s) {
      return contrastive_loss(u, v, s, in.labels, kind);
    };
    const Result single = differentiate(tiled, in.u, in.v, 100, at::kFloat);
    expect_close(differentiate(tiled, in.u, in.v, 100, at::kDouble), expected, 1e-12, 1, "float64");
    // A similarity near 100 is known to 4e-6 in float32, and so is each probability, relatively: PyTorch's too.
    expect_as_exact_as_pytorch(single, differentiate(plain, in.u, in.v, 100, at::kFloat), expected, 100, "float32");
  }
}

TEST(Contrastive, ComputesOnlyTheGradientsAskedFor) {
  const Inputs in(20, 6, 3, at::kDouble);
  for (int wanted = 0; wanted < 8; ++wanted) {
    const auto leaf = [&](const at::Tensor& x, int bit) { return x.clone().set_requires_grad(wanted & bit); };
    const at::Tensor u = leaf(in.u, 1), v = leaf(in.v, 2), s = leaf(at::scalar_tensor(3.0, at::kDouble), 4);
    const at::Tensor loss = contrastive_loss(u, v, s, in.labels, PairTargets::kClassMean);
    EXPECT_EQ(loss.requires_grad(), wanted != 0);
    if (wanted) torch::autograd::backward({loss}, {});
    EXPECT_EQ(u.grad().defined(), (wanted & 1) != 0);
    EXPECT_EQ(v.grad().defined(), (wanted & 2) != 0);
    EXPECT_EQ(s.grad().defined(), (wanted & 4) != 0);
  }
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
         std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

// What `parts` parts exchange, without threads: what a part sends does not depend on what it receives, so a first round
// with made-up answers collects it all, and later calls of gather answer from that.
class Exchange {
 public:
  explicit Exchange(int64_t parts) : sent_(parts) {}

  Partition share(int64_t part, int64_t begin, int64_t end) {
    auto call = std::make_shared<size_t>(0);
    return {static_cast<int64_t>(sent_.size()), part,
            [this, part, call](const at::Tensor& own, const std::vector<int64_t>& counts) {
              EXPECT_EQ(own.size(0), counts[part]);
              EXPECT_TRUE(own.is_contiguous());
              if (collecting_) {
                sent_[part].push_back(own.clone());
                auto shape = own.sizes().vec();
                shape[0] = std::accumulate(counts.begin(), counts.end(), int64_t{0});
                return at::ones(shape, own.options());
              }
              std::vector<at::Tensor> all;
              for (size_t p = 0; p < sent_.size(); ++p) {
                all.push_back(sent_[p].at(*call));
                EXPECT_EQ(all.back().size(0), counts[p]);
              }
              ++*call;
              return at::cat(all, 0);
            },
            begin, end};
  }
  void answer() { collecting_ = false; }
  size_t calls() const { return sent_[0].size(); }

 private:
  std::vector<std::vector<at::Tensor>> sent_;
  bool collecting_ = true;
};

// Every part's value, scale gradient and rows in its range must be those of one part that does everything, to the bit.
template <typename Loss>
void expect_same_bits_for_any_parts(const Loss& loss, const Inputs& in, at::ScalarType dtype) {
  const int64_t rows = in.u.size(0);
  const auto with = [&](const Partition& share) {
    return differentiate([&](const auto& u, const auto& v, const auto& s) { return loss(u, v, s, share); }, in.u, in.v,
                         14.3, dtype);
  };
  const Result whole = with({});
  for (const int64_t parts : {1, 2, 3, 4, 8}) {
    Exchange exchange(parts);
    const auto share = [&](int64_t part) {  // uneven ranges, the last one short
      const int64_t length = rows / parts + 1, begin = std::min(rows, part * length);
      return exchange.share(part, begin, std::min(rows, begin + length));
    };
    const at::Tensor scale = at::scalar_tensor(14.3, dtype).requires_grad_();
    for (int64_t part = 0; part < parts; ++part) loss(in.u.to(dtype), in.v.to(dtype), scale, share(part));
    exchange.answer();
    for (int64_t part = 0; part < parts; ++part) {
      const auto own = [&](const at::Tensor& x) {
        return x.slice(0, share(part).gradient_begin, share(part).gradient_end);
      };
      const Result result = with(share(part));
      const std::string what = std::to_string(parts) + " parts, part " + std::to_string(part);
      EXPECT_TRUE(same_bits(result.loss, whole.loss)) << what;
      EXPECT_TRUE(same_bits(result.parameter, whole.parameter)) << what;
      EXPECT_TRUE(same_bits(own(result.u), own(whole.u))) << what;
      EXPECT_TRUE(same_bits(own(result.v), own(whole.v))) << what;
    }
  }
}

TEST(ContrastiveSharing, AnyNumberOfPartsGivesTheSameBits) {
  at::manual_seed(15);
  for (const auto dtype : {at::kFloat, at::kDouble})
    for (const int64_t rows : {501, 1101, 2303}) {
      const Inputs in(rows, 40, 4, dtype);
      for (const auto kind : {PairTargets::kOwn, PairTargets::kClassMean}) {
        if (rows > 2000 && (kind == PairTargets::kOwn || dtype == at::kDouble)) continue;
        expect_same_bits_for_any_parts(
            [&](const auto& u, const auto& v, const auto& s, const Partition& share) {
              return contrastive_loss(u, v, s, in.labels, kind, share);
            },
            in, dtype);
      }
    }
}

TEST(ContrastiveSharing, AlignmentWithMissingModalitiesGivesTheSameBits) {
  at::manual_seed(16);
  const Inputs in(1501, 12, 4, at::kFloat);
  const at::Tensor third = at::flip(in.u, {1}).contiguous();
  at::Tensor presence = at::rand({1501, 3}).gt(0.1);
  presence.slice(0, 0, 800).select(1, 2).fill_(false);  // one pair is large enough to be shared, two are not
  expect_same_bits_for_any_parts(
      [&](const auto& u, const auto& v, const auto& s, const Partition& share) {
        return alignment_loss({u, v, third}, presence, 0.07, share) + 0 * s;
      },
      in, at::kFloat);
}

TEST(ContrastiveSharing, ExchangesFromSharedRowsOn) {
  for (const int64_t rows : {kSharedRows - 1, kSharedRows}) {
    const Inputs in(rows, 4, 2, at::kFloat);
    Exchange exchange(2);
    contrastive_loss(in.u, in.v, at::scalar_tensor(2.0), in.labels, PairTargets::kOwn, exchange.share(0, 0, rows / 2));
    EXPECT_EQ(exchange.calls(), rows < kSharedRows ? 0u : 2u);
  }
}

TEST(ContrastiveSharing, LeavesRowsOutsideTheRangeAtZero) {
  const Inputs in(1200, 4, 2, at::kFloat);
  const Partition share{1, 0, {}, 0, 10};
  const auto loss = [&](const auto& u, const auto& v, const auto& s) {
    return contrastive_loss(u, v, s, in.labels, PairTargets::kOwn, share);
  };
  const Result result = differentiate(loss, in.u, in.v, 5, at::kFloat);
  for (const at::Tensor& gradient : {result.u, result.v}) {
    EXPECT_TRUE(gradient.slice(0, 0, 10).ne(0).all().item<bool>());
    EXPECT_TRUE(
        gradient.slice(0, 1000, 1200).eq(0).all().item<bool>());  // other blocks than the range's are not computed
  }
}

}  // namespace
}  // namespace muster::losses
