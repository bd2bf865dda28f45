#include "core/models/encoders/spec_augment.h"

#include <algorithm>
#include <numeric>

#include "core/kernels/upload.h"
#include "core/random/philox.h"

namespace muster::models {
namespace {

// Sets [start, start + length) of each start.
void set_spans(bool* mask, const std::vector<int64_t>& starts, int64_t length) {
  for (const int64_t start : starts) std::fill_n(mask + start, length, true);
}

}  // namespace

std::vector<int64_t> span_starts(const MaskedSpans& spans, int64_t positions, const kernels::DropoutKey& key,
                                 int64_t batch_index) {
  const int64_t places = positions - (spans.length - 1);
  if (places < 1) return {};
  const auto sample = static_cast<uint32_t>(batch_index);
  // Rounded up or down at random, so that the mean is right.
  const double round = random::uniform(random::philox4x32(key.seed, {0, sample, key.site, key.step})[0]);
  auto count =
      static_cast<int64_t>(spans.share * static_cast<double>(positions) / static_cast<double>(spans.length) + round);
  count = std::min({std::max(count, spans.least), positions / spans.length, places});
  // The first `count` of a random permutation (Fisher and Yates).
  std::vector<int64_t> order(static_cast<size_t>(places));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = random::bits64(key.seed, {static_cast<uint32_t>(i + 1), sample, key.site, key.step});
    // The remainder's bias is below 2^-32 for fewer than 2^32 places.
    const auto other = i + static_cast<int64_t>(bits % static_cast<uint64_t>(places - i));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(other)]);
  }
  order.resize(static_cast<size_t>(count));
  return order;
}

at::Tensor mask_times(const at::Tensor& x, const at::Tensor& embedding, const MaskedSpans& spans,
                      const SampleRows& rows, const kernels::DropoutKey& key) {
  if (spans.share == 0) return x;
  const at::Tensor mask = at::zeros({x.size(0)}, at::kBool);
  bool any = false;
  for (size_t sample = 0; sample < rows.batch_index.size(); ++sample) {
    const int64_t begin = rows.offsets[sample], count = rows.offsets[sample + 1] - begin;
    const auto starts = span_starts(spans, count, key, rows.batch_index[sample]);
    set_spans(mask.mutable_data_ptr<bool>() + begin, starts, spans.length);
    any = any || !starts.empty();
  }
  if (!any) return x;
  return at::where(kernels::upload(mask, x.device()).unsqueeze(1), embedding.to(x.scalar_type()), x);
}

at::Tensor mask_features(const at::Tensor& x, const MaskedSpans& spans, const SampleRows& rows,
                         const kernels::DropoutKey& key) {
  if (spans.share == 0) return x;
  const auto samples = static_cast<int64_t>(rows.batch_index.size());
  const at::Tensor mask = at::zeros({samples, x.size(1)}, at::kBool);
  std::vector<int64_t> lengths(rows.batch_index.size());
  for (size_t sample = 0; sample < lengths.size(); ++sample) {
    set_spans(mask.mutable_data_ptr<bool>() + static_cast<int64_t>(sample) * x.size(1),
              span_starts(spans, x.size(1), key, rows.batch_index[sample]), spans.length);
    lengths[sample] = rows.offsets[sample + 1] - rows.offsets[sample];
  }
  const at::Tensor by_row =
      kernels::upload(mask, x.device()).repeat_interleave(kernels::upload(lengths, x.device()), 0, rows.offsets.back());
  return x.masked_fill(by_row, 0);
}

}  // namespace muster::models
