#include "core/losses/contrastive.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/batch/ragged.h"
#include "core/kernels/upload.h"

namespace muster::losses {
namespace {

// Rows are cut into blocks, the same for u and v; block I of u against block J of v is one tile.
struct Blocks {
  int64_t rows;
  int64_t size;

  // On the CPU three tiles of float32 fit a core's second-level cache; a GPU wants few large kernels.
  explicit Blocks(const at::Tensor& u) : rows(u.size(0)), size(u.is_cuda() ? 2048 : 256) {}
  int64_t count() const { return (rows + size - 1) / size; }
  int64_t begin(int64_t block) const { return block * size; }
  int64_t length(int64_t block) const { return std::min(size, rows - begin(block)); }
  at::Tensor of(const at::Tensor& x, int64_t block, int64_t dim = 0) const {
    return x.narrow(dim, begin(block), length(block));
  }
};

// Room for one tile after the other, or for all at once. Every tile is contiguous, so that its sums run in the same
// order whoever makes it.
class Tiles {
 public:
  Tiles(const Blocks& blocks, const at::TensorOptions& options, bool all = false) : blocks_(blocks), all_(all) {
    const int64_t side = all ? blocks.rows : std::min(blocks.size, blocks.rows);
    flat_ = at::empty({side * side}, options);
  }
  // As all() gave them.
  Tiles(const Blocks& blocks, const at::Tensor& all) : blocks_(blocks), all_(true), flat_(all) {}

  at::Tensor operator()(int64_t i, int64_t j) const {
    const int64_t height = blocks_.length(i), width = blocks_.length(j);
    const int64_t begin = all_ ? blocks_.begin(i) * blocks_.rows + height * blocks_.begin(j) : 0;
    return flat_.narrow(0, begin, height * width).view({height, width});
  }
  at::Tensor all() const { return all_ ? flat_ : at::Tensor(); }

 private:
  Blocks blocks_;
  bool all_;
  at::Tensor flat_;
};

// Calls f(j, thread) for every column block, on the CPU from several threads at once: threads that share out tiles meet
// far more seldom than threads that share out each small operation on a tile.
template <typename Function>
void for_each_column_block(const Blocks& blocks, bool cuda, const Function& f) {
  const auto run = [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_gradient;  // the mode belongs to the thread
    for (int64_t j = begin; j < end; ++j) f(j, cuda ? 0 : at::get_thread_num());
  };
  if (cuda)
    run(0, blocks.count());
  else
    at::parallel_for(0, blocks.count(), 1, run);
}

// Buffers for each thread of for_each_column_block.
std::vector<Tiles> tiles_per_thread(const Blocks& blocks, const at::TensorOptions& options) {
  std::vector<Tiles> tiles;
  const int64_t threads = options.device().is_cuda() ? 1 : std::min<int64_t>(at::get_num_threads(), blocks.count());
  for (int64_t t = 0; t < threads; ++t) tiles.emplace_back(blocks, options);
  return tiles;
}

// Statistics of a softmax over part of a row or column: [3, n] or, when the mean of S under the softmax is not asked
// for, [2, n]: m = max S;  sum exp(S - m);  sum exp(S - m) (S - m).

// Writes the statistics of `tile` along `dim` into `out`; `shifted` and `scratch` are overwritten.
void tile_statistics(const at::Tensor& tile, int64_t dim, at::Tensor out, at::Tensor shifted, at::Tensor scratch) {
  at::Tensor maximum = out.select(0, 0), sum = out.select(0, 1);
  at::amax_out(maximum, tile, dim);
  at::sub_out(shifted, tile, maximum.unsqueeze(dim));
  at::exp_out(scratch, shifted);
  at::sum_out(sum, scratch, dim);
  if (out.size(0) < 3) return;
  at::Tensor moment = out.select(0, 2);
  at::sum_out(moment, scratch.mul_(shifted), dim);
}

// The statistics of the union: [parts, k, n] -> [k, n], in float64.
at::Tensor combine(const at::Tensor& partials) {
  const at::Tensor parts = partials.to(at::kDouble);
  if (parts.size(0) == 1) return parts[0].clone();
  const at::Tensor maximum = parts.select(1, 0).amax(0), shift = parts.select(1, 0) - maximum, weight = shift.exp();
  const at::Tensor sums = parts.select(1, 1);
  std::vector<at::Tensor> result{maximum, (weight * sums).sum(0)};
  if (parts.size(1) == 3) result.push_back((weight * (parts.select(1, 2) + shift * sums)).sum(0));
  return at::stack(result, 0);
}

struct Softmaxes {
  at::Tensor tiles;              // all of S, kept for the backward pass where it is small; or undefined
  at::Tensor row_statistics;     // [k, N] float64
  at::Tensor column_statistics;  // [k, N] float64
};

at::Tensor log_sum_exp(const at::Tensor& statistics) { return statistics[0] + statistics[1].log(); }
at::Tensor softmax_mean(const at::Tensor& statistics) { return statistics[0] + statistics[2] / statistics[1]; }

// Statistics of every row and column of u v^T: this part's row blocks are computed, the other parts' arrive through
// partition.gather.
Softmaxes softmaxes(const at::Tensor& u, const at::Tensor& v, int64_t kinds, const Partition& partition) {
  const Blocks blocks(u);
  const bool shared = partition.parts > 1 && blocks.rows >= kSharedRows && blocks.count() > 1;
  const auto deal = batch::even_boundaries(blocks.count(), shared ? partition.parts : 1);
  const int64_t part = shared ? partition.part : 0;
  const int64_t first = deal[part], last = deal[part + 1];

  const bool keep = blocks.rows < kSharedRows;
  const auto similarity = keep ? std::vector{Tiles(blocks, u.options(), true)} : tiles_per_thread(blocks, u.options());
  const auto shifted = tiles_per_thread(blocks, u.options()), scratch = tiles_per_thread(blocks, u.options());
  at::Tensor columns;  // [k, N]: of the row blocks so far
  const auto add_columns = [&](const at::Tensor& block_columns) {
    const at::Tensor wide = block_columns.to(at::kDouble);
    columns = combine(columns.defined() ? at::stack({columns, wide}) : wide.unsqueeze(0));
  };
  const int64_t own_begin = std::min(blocks.begin(first), blocks.rows),
                own_end = std::min(blocks.begin(last), blocks.rows);
  at::Tensor own_rows = at::empty({own_end - own_begin, kinds}, u.options().dtype(at::kDouble));
  at::Tensor own_columns = at::empty({shared ? last - first : 1, kinds, blocks.rows}, u.options());
  for (int64_t i = first; i < last; ++i) {
    const int64_t height = blocks.length(i);
    at::Tensor block_columns = own_columns.select(0, shared ? i - first : 0);
    at::Tensor block_rows = at::empty({blocks.count(), kinds, height}, u.options());
    for_each_column_block(blocks, u.is_cuda(), [&](int64_t j, int thread) {
      at::Tensor tile = similarity[keep ? 0 : thread](i, j);
      at::mm_out(tile, blocks.of(u, i), blocks.of(v, j).t());
      tile_statistics(tile, 1, block_rows.select(0, j), shifted[thread](i, j), scratch[thread](i, j));
      tile_statistics(tile, 0, blocks.of(block_columns, j, 1), shifted[thread](i, j), scratch[thread](i, j));
    });
    own_rows.narrow(0, blocks.begin(i) - own_begin, height).copy_(combine(block_rows).t());
    if (!shared) add_columns(block_columns);
  }
  if (shared) {
    std::vector<int64_t> block_counts, row_counts;
    for (int64_t p = 0; p < partition.parts; ++p) {
      block_counts.push_back(deal[p + 1] - deal[p]);
      row_counts.push_back(std::min(blocks.begin(deal[p + 1]), blocks.rows) -
                           std::min(blocks.begin(deal[p]), blocks.rows));
    }
    own_rows = partition.gather(own_rows, row_counts);
    own_columns = partition.gather(own_columns, block_counts);
    for (int64_t i = 0; i < blocks.count(); ++i) add_columns(own_columns.select(0, i));
  }
  return {similarity[0].all(), own_rows.t().contiguous(), columns};
}

// T by classes: T_ij = weight[c] if i and j are both of class c, else 0. With kOwn each row is a class, which makes T
// the identity.
struct Classes {
  at::Tensor of_row;  // int64 [N]; undefined with kOwn
  at::Tensor weight;  // float64 [classes]
  at::Tensor total;   // float64 [N]: sum_j T_ij
  at::Tensor order;   // rows by class; undefined with kOwn
  std::vector<int64_t> sizes;

  Classes(const at::Tensor& labels, PairTargets targets, const at::Tensor& like) {
    const auto wide = like.options().dtype(at::kDouble);
    if (targets == PairTargets::kOwn) {
      weight = total = at::ones({like.size(0)}, wide);
      return;
    }
    const auto [distinct, inverse, counts] =
        at::_unique2(labels, /*sorted=*/true, /*return_inverse=*/true, /*return_counts=*/true);
    sizes.assign(counts.const_data_ptr<int64_t>(), counts.const_data_ptr<int64_t>() + counts.numel());
    order = kernels::upload(inverse.argsort(/*stable=*/true), like.device());
    of_row = kernels::upload(inverse, like.device());
    const at::Tensor count = counts.to(at::kDouble);
    const bool mean = targets == PairTargets::kClassMean;
    weight = kernels::upload(mean ? count.reciprocal() : at::ones_like(count), like.device());
    total = mean ? at::ones({like.size(0)}, wide) : kernels::upload(count.index_select(0, inverse), like.device());
  }

  // [classes, dim]: each class's sum of rows of x.
  at::Tensor sums(const at::Tensor& x) const {
    if (!order.defined()) return x;
    const at::Tensor sorted = x.index_select(0, order);
    at::Tensor sums = at::empty({static_cast<int64_t>(sizes.size()), x.size(1)}, x.options());
    int64_t begin = 0;
    for (size_t c = 0; c < sizes.size(); begin += sizes[c++]) {
      at::Tensor sum = sums.select(0, static_cast<int64_t>(c));
      at::sum_out(sum, sorted.narrow(0, begin, sizes[c]), 0);
    }
    return sums;
  }
};

struct ContrastiveFunction : torch::autograd::Function<ContrastiveFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& u, const at::Tensor& v,
                            const at::Tensor& scale, const Classes& classes, bool scale_gradient,
                            const Partition& partition) {
    const int64_t n = u.size(0);
    const double half = 0.5 / static_cast<double>(n);
    // The scale goes into u once instead of into every tile.
    const at::Tensor scaled = (u * scale.to(u.scalar_type())).contiguous(), columns = v.contiguous();
    const Softmaxes soft = softmaxes(scaled, columns, scale_gradient ? 3 : 2, partition);
    const at::Tensor row = log_sum_exp(soft.row_statistics), column = log_sum_exp(soft.column_statistics);

    const at::Tensor class_u = classes.sums(scaled), class_v = classes.sums(columns);
    const at::Tensor attraction =
        (classes.weight * (class_u * class_v).sum(1, false, at::kDouble)).sum();  // sum_ij T_ij S_ij
    const at::Tensor value = ((classes.total * (row + column)).sum() - 2 * attraction) * half;

    const at::ScalarType dtype = u.scalar_type();
    context->save_for_backward({u, v, scale});
    auto& saved = context->saved_data;
    // Maximum and factor apart, t exp(S - max) / sum: the rounding of a log-sum-exp of 14 would be 1e-6 of every weight
    // in float32.
    saved["row_maximum"] = soft.row_statistics[0].to(dtype);
    saved["row_factor"] = (classes.total / soft.row_statistics[1]).to(dtype);
    saved["column_maximum"] = soft.column_statistics[0].to(dtype);
    saved["column_factor"] = (classes.total / soft.column_statistics[1]).to(dtype);
    saved["tiles"] = soft.tiles;
    // A row's own pair is taken off the weights themselves, next to the softmax of about 1 that it cancels; classes by
    // their sums.
    saved["own"] = !classes.order.defined();
    if (classes.order.defined()) {
      const at::Tensor pull = (-2 * classes.weight).to(dtype).unsqueeze(1);
      saved["class_of_row"] = classes.of_row;
      saved["pull_u"] = class_v * pull;
      saved["pull_v"] = class_u * pull;
    }
    saved["begin"] = partition.gradient_end < 0 ? 0 : partition.gradient_begin;
    saved["end"] = partition.gradient_end < 0 ? n : partition.gradient_end;
    if (scale_gradient) {
      const at::Tensor means = softmax_mean(soft.row_statistics) + softmax_mean(soft.column_statistics);
      saved["scale_gradient"] = ((classes.total * means).sum() - 2 * attraction) * half / scale.to(at::kDouble);
    }
    return value.to(dtype);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto inputs = context->get_saved_variables();
    const at::Tensor &u = inputs[0], &scale = inputs[2];
    const auto& saved = context->saved_data;
    const at::Tensor factor = gradients[0] * (0.5 / static_cast<double>(u.size(0)));
    const at::Tensor scale_in_dtype = scale.to(u.scalar_type());
    at::Tensor u_gradient, v_gradient, scale_gradient;
    if (context->needs_input_grad(0)) u_gradient = at::zeros_like(u, at::MemoryFormat::Contiguous);
    if (context->needs_input_grad(1)) v_gradient = at::zeros_like(u, at::MemoryFormat::Contiguous);
    if (context->needs_input_grad(2))
      scale_gradient = (gradients[0].to(at::kDouble) * saved.at("scale_gradient").toTensor()).to(scale.scalar_type());
    if (u_gradient.defined() || v_gradient.defined())
      add_embedding_gradients(saved, (u * scale_in_dtype).contiguous(), inputs[1].contiguous(), u_gradient, v_gradient);
    if (u_gradient.defined()) u_gradient.mul_(factor * scale_in_dtype);
    if (v_gradient.defined()) v_gradient.mul_(factor);
    return {u_gradient, v_gradient, scale_gradient, {}, {}, {}};
  }

 private:
  // Into the blocks of the defined gradients that meet the range: pull + G v and pull + G^T u (u already scaled), where
  // G_ij = t_i softmax_j S_ij + t_j softmax_i S_ij; with kOwn G_ii is 2 less, and there is no pull.
  static void add_embedding_gradients(const ska::flat_hash_map<std::string, at::IValue>& saved, const at::Tensor& u,
                                      const at::Tensor& v, at::Tensor& u_gradient, at::Tensor& v_gradient) {
    const Blocks blocks(u);
    const int64_t begin = saved.at("begin").toInt(), end = saved.at("end").toInt();
    if (begin >= end) return;
    const int64_t first = begin / blocks.size, last = (end - 1) / blocks.size + 1;
    const auto wanted = [&](int64_t block) { return first <= block && block < last; };
    const at::Tensor row_maximum = saved.at("row_maximum").toTensor().unsqueeze(1),
                     row_factor = saved.at("row_factor").toTensor().unsqueeze(1);
    const at::Tensor column_maximum = saved.at("column_maximum").toTensor().unsqueeze(0);
    const at::Tensor column_factor = saved.at("column_factor").toTensor().unsqueeze(0);
    const bool own = saved.at("own").toBool();
    for (int64_t block = first; block < last && !own; ++block) {
      const at::Tensor classes = blocks.of(saved.at("class_of_row").toTensor(), block);
      if (u_gradient.defined())
        blocks.of(u_gradient, block).copy_(saved.at("pull_u").toTensor().index_select(0, classes));
      if (v_gradient.defined())
        blocks.of(v_gradient, block).copy_(saved.at("pull_v").toTensor().index_select(0, classes));
    }
    const at::Tensor kept = saved.at("tiles").toTensor();
    const auto similarity = kept.defined() ? std::vector{Tiles(blocks, kept)} : tiles_per_thread(blocks, u.options());
    const auto row_softmax = tiles_per_thread(blocks, u.options()),
               column_softmax = tiles_per_thread(blocks, u.options());
    // What each tile of one row of tiles adds to u's gradient: computed in any order, added in one.
    at::Tensor additions;
    if (u_gradient.defined())
      additions = at::empty({blocks.count(), std::min(blocks.size, blocks.rows), u.size(1)}, u.options());
    for (int64_t i = 0; i < blocks.count(); ++i) {
      const bool for_u = u_gradient.defined() && wanted(i);
      const auto addition = [&](int64_t j) { return additions.select(0, j).narrow(0, 0, blocks.length(i)); };
      for_each_column_block(blocks, u.is_cuda(), [&](int64_t j, int thread) {
        const bool for_v = v_gradient.defined() && wanted(j);
        if (!for_u && !for_v) return;
        at::Tensor tile = similarity[kept.defined() ? 0 : thread](i, j);
        at::Tensor weights = row_softmax[thread](i, j), others = column_softmax[thread](i, j);
        if (!kept.defined()) at::mm_out(tile, blocks.of(u, i), blocks.of(v, j).t());
        at::sub_out(weights, tile, blocks.of(row_maximum, i)).exp_().mul_(blocks.of(row_factor, i));
        at::sub_out(others, tile, blocks.of(column_maximum, j, 1)).exp_();
        weights.addcmul_(others, blocks.of(column_factor, j, 1));
        if (own && i == j) weights.diagonal().sub_(2);
        if (for_u) {
          at::Tensor out = addition(j);
          at::mm_out(out, weights, blocks.of(v, j));
        }
        if (for_v) blocks.of(v_gradient, j).addmm_(weights.t(), blocks.of(u, i));
      });
      for (int64_t j = 0; for_u && j < blocks.count(); ++j) blocks.of(u_gradient, i).add_(addition(j));
    }
  }
};

}  // namespace

at::Tensor contrastive_loss(const at::Tensor& u, const at::Tensor& v, const at::Tensor& scale, const at::Tensor& labels,
                            PairTargets targets, const Partition& partition) {
  const bool scale_gradient = at::GradMode::is_enabled() && scale.requires_grad();
  return ContrastiveFunction::apply(u, v, scale, Classes(labels, targets, u), scale_gradient, partition);
}

}  // namespace muster::losses
