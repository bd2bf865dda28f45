#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <vector>

// What the attention nodes that go through a batch sample by sample have in common. Why not a slice per sample under
// autograd: each slice's backward writes a zero tensor of the full size, so a batch would cost its square. Inside one
// node the per-sample views are free.
namespace muster::kernels {

constexpr int64_t kMostAttentionScores = 1 << 18;  // at once: 1 MB of float32, which stays in a core's cache

// Consecutive samples of equal lengths, whose products are computed by one call: beginning it takes longer than a short
// sample's product.
struct AttentionGroup {
  size_t first;                    // sample
  int64_t samples, queries, rows;  // queries and rows: of each
};

// Rows of the longest sample; 0 where there is none.
inline int64_t longest_of(const std::vector<int64_t>& offsets) {
  int64_t longest = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) longest = std::max(longest, offsets[s + 1] - offsets[s]);
  return longest;
}

inline std::vector<AttentionGroup> attention_groups(const std::vector<int64_t>& query_offsets,
                                                    const std::vector<int64_t>& context_offsets, int64_t heads) {
  std::vector<AttentionGroup> groups;
  for (size_t sample = 0; sample + 1 < query_offsets.size(); ++sample) {
    const int64_t queries = query_offsets[sample + 1] - query_offsets[sample],
                  rows = context_offsets[sample + 1] - context_offsets[sample];
    if (queries == 0 || rows == 0) continue;
    if (!groups.empty()) {
      auto& last = groups.back();
      const bool follows =
          last.first + static_cast<size_t>(last.samples) == sample && last.queries == queries && last.rows == rows;
      if (follows && (last.samples + 1) * heads * queries * rows <= kMostAttentionScores) {
        ++last.samples;
        continue;
      }
    }
    groups.push_back({sample, 1, queries, rows});
  }
  return groups;
}

// Columns [column, column + dim) of rows [begin, begin + samples * rows) as [samples, heads, rows, dim/heads], a
// strided view made at once.
struct HeadViews {
  int64_t dim, heads;
  at::Tensor operator()(const at::Tensor& table, int64_t begin, int64_t samples, int64_t rows, int64_t column) const {
    const int64_t row = table.stride(0), element = table.stride(1), width = dim / heads;
    return table.as_strided({samples, heads, rows, width}, {rows * row, width * element, row, element},
                            table.storage_offset() + begin * row + column * element);
  }
};

// [samples, heads, rows, width] as [samples * heads, rows, width]: a view of one sample, a copy of several.
inline at::Tensor merged_heads(const at::Tensor& x) { return x.size(0) == 1 ? x.squeeze(0) : x.flatten(0, 1); }

// [samples * heads, rows, width] into such a view.
inline void write_heads(const at::Tensor& view, const at::Tensor& value) { view.copy_(value.view(view.sizes())); }

// scale a b^T, in `wide`.
inline at::Tensor attention_scores(const at::Tensor& a, const at::Tensor& b, double scale, at::ScalarType wide) {
  const at::Tensor b_t = b.transpose(1, 2);
  if (a.scalar_type() != wide) return at::bmm(a, b_t).to(wide).mul_(scale);
  at::Tensor scores = at::empty({a.size(0), a.size(1), b.size(1)}, a.options());
  return scores.baddbmm_(a, b_t, /*beta=*/0, /*alpha=*/scale);
}

}  // namespace muster::kernels
