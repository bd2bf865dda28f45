#include "core/models/miar_layout.h"

#include <numeric>

#include "core/kernels/upload.h"

namespace muster::models {

MiarLayout::MiarLayout(const std::vector<batch::Ragged>& modalities) {
  const int64_t count = static_cast<int64_t>(modalities.size());
  const int64_t samples = modalities[0].samples();
  const c10::Device device = modalities[0].values.device();
  one_row_each.resize(samples + 1);
  std::iota(one_row_each.begin(), one_row_each.end(), 0);

  streams.resize(count + 1);
  std::vector<int64_t> base(count + 1, 0);  // of each stream in `all`
  for (int64_t m = 0; m < count; ++m) {
    Stream& stream = streams[m];
    std::vector<int64_t> token_first, token_rows;
    stream.offsets.push_back(0);
    for (int64_t s = 0; s < samples; ++s) {
      token_rows.push_back(stream.offsets.back());
      token_first.push_back(s);
      for (int64_t row = modalities[m].offsets[s]; row < modalities[m].offsets[s + 1]; ++row)
        token_first.push_back(samples + row);
      stream.offsets.push_back(static_cast<int64_t>(token_first.size()));
    }
    stream.token_first = kernels::upload(token_first, device);
    stream.token_rows = kernels::upload(token_rows, device);
    base[m + 1] = base[m] + stream.offsets.back();
  }
  Stream& joint = streams[count];
  joint.offsets = one_row_each;
  joint.token_rows = at::arange(samples, at::TensorOptions(device).dtype(at::kLong));

  for (int64_t k = 0; k <= count; ++k) {
    Stream& stream = streams[k];
    std::vector<int64_t> context;
    bool all_have_context = true;
    std::vector<int64_t> has_context(samples, 1);
    stream.context_offsets.push_back(0);
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t m = 0; m < count; ++m) {
        if (m == k) continue;
        // A modality's queries see the others' frames; the joint token also sees their tokens.
        const int64_t first = streams[m].offsets[s] + (k == count ? 0 : 1);
        for (int64_t row = first; row < streams[m].offsets[s + 1]; ++row) context.push_back(base[m] + row);
      }
      if (static_cast<int64_t>(context.size()) == stream.context_offsets.back()) {
        all_have_context = false;
        has_context[s] = 0;
      }
      stream.context_offsets.push_back(static_cast<int64_t>(context.size()));
    }
    stream.context_rows = kernels::upload(context, device);
    if (!all_have_context) stream.has_context = kernels::upload<bool>(has_context, device);
  }
}

}  // namespace muster::models
