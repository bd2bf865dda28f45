#include "core/training/step.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/optim/adamw.h"
#include "core/training/autocast.h"
#include "distributed/collective_call.h"

namespace muster::training {
namespace {

// Evaluations use step numbers that training never reaches.
constexpr uint32_t kEvaluation = 0x80000000u;

at::Tensor weighted_sum(const std::vector<at::Tensor>& losses, const std::vector<models::LossTerm>& terms,
                        const at::TensorOptions& options) {
  at::Tensor total = at::zeros({}, options);
  for (size_t i = 0; i < losses.size(); ++i) total = total + losses[i] * terms[i].weight;
  return total;
}

at::Tensor values_of(const std::vector<at::Tensor>& losses, const at::TensorOptions& options) {
  std::vector<at::Tensor> values;
  for (const auto& loss : losses) values.push_back(loss.detach().to(at::kDouble));
  return values.empty() ? at::empty({0}, options.dtype(at::kDouble)) : at::stack(values);
}

}  // namespace

at::Tensor BatchOutcome::total() const {
  at::Tensor total = at::zeros({}, values.options());
  for (size_t i = 0; i < row_and_batch_terms.size(); ++i)
    total = total + values[static_cast<int64_t>(i)] * row_and_batch_terms[i].weight;
  return total;
}

std::vector<std::pair<std::string, double>> BatchOutcome::terms() const {
  const at::Tensor numbers = values.cpu();
  std::vector<std::pair<std::string, double>> terms;
  for (size_t i = 0; i < row_and_batch_terms.size(); ++i)
    terms.emplace_back(row_and_batch_terms[i].name, numbers.const_data_ptr<double>()[i]);
  return terms;
}

Step::Step(models::Model& model, const batch::BatchReader& reader, distributed::Communicator& communicator,
           const StepOptions& options)
    : model_(model),
      reader_(reader),
      communicator_(communicator),
      options_(options),
      division_{options.microbatches, communicator.rank(), communicator.size()} {
  if (options.reproducible)
    tree_sum_.emplace(options.microbatches, batch::microbatch_boundaries(division_), communicator.rank());
}

losses::Partition Step::partition_of(const batch::GlobalBatch& global) {
  losses::Partition partition;
  partition.parts = communicator_.size();
  partition.part = communicator_.rank();
  partition.gather = [this](const at::Tensor& own, const std::vector<int64_t>& counts) {
    const distributed::CollectiveLabel label("batch losses");
    return communicator_.all_gather_rows(own, counts);
  };
  partition.gradient_begin = global.own.begin;
  partition.gradient_end = global.own.end;
  return partition;
}

Step::Gathered Step::embed_and_gather(const batch::LoadedBatch& batch, const models::StepContext& context,
                                      bool gather) {
  Gathered gathered;
  std::vector<at::Tensor> own;
  const at::ScalarType dtype = model_.parameters().dtype();
  gather = gather && model_.embedding_dim() > 0;
  {
    const Autocast autocast(options_.bf16, reader_.device().type());
    for (const auto& microbatch : batch.microbatches) {
      gathered.embedded.push_back(model_.embed(microbatch, context));
      if (!gather) continue;
      auto& embedded = gathered.embedded.back();
      embedded.rows = embedded.rows.to(dtype);
      own.push_back(embedded.rows.detach());
    }
  }
  if (!gather) return gathered;
  const at::Tensor mine = own.empty() ? at::empty({0, model_.embedding_dim()}, model_.parameters().values().options())
                                      : at::cat(own, 0).contiguous();
  const distributed::CollectiveLabel label("embeddings");
  gathered.rows = communicator_.all_gather_rows(mine, batch.global.row_counts);
  return gathered;
}

std::vector<batch::Ragged> Step::read_hard_negatives(const batch::GlobalBatch& global, const batch::Rows& rows,
                                                     const std::vector<models::HardNegatives>& partners) const {
  std::vector<batch::Ragged> frames;
  // Any rank reads any sample's frames from the data file: nothing is sent.
  for (const auto& partner : partners) {
    std::vector<int64_t> samples;
    for (int64_t row = rows.begin; row < rows.end; ++row)
      samples.push_back(global.samples[partner.batch_index[row - global.own.begin]]);
    frames.push_back(reader_.read_modality(partner.modality, samples));
  }
  return frames;
}

void Step::finish_losses(BatchOutcome& outcome, const batch::GlobalBatch& global,
                         const std::vector<at::Tensor>& row_values, const std::vector<at::Tensor>& batch_losses) {
  outcome.row_and_batch_terms = model_.row_terms();
  const auto options = model_.parameters().values().options();
  const at::Tensor own = row_values.empty() ? at::empty({0, static_cast<int64_t>(outcome.row_and_batch_terms.size())},
                                                        options.dtype(at::kDouble))
                                            : at::stack(row_values);
  const distributed::CollectiveLabel label("losses");
  const at::Tensor all = communicator_.all_gather_rows(own, global.filled_counts);
  outcome.values = at::cat({all.sum(0), values_of(batch_losses, options)});
  outcome.row_and_batch_terms.insert(outcome.row_and_batch_terms.end(), model_.batch_terms().begin(),
                                     model_.batch_terms().end());
}

std::vector<at::Tensor> Step::forward_backward(const batch::LoadedBatch& batch, const models::StepContext& context,
                                               const MicrobatchVisitor& visit) {
  auto& parameters = model_.parameters();
  const auto options = parameters.values().options();
  const auto& global = batch.global;
  parameters.zero_gradients();
  Gathered gathered = embed_and_gather(batch, context, true);

  std::vector<at::Tensor> batch_losses;
  std::vector<models::HardNegatives> partners;
  at::Tensor embedding_gradient;
  if (gathered.rows.defined()) {
    partners = model_.hard_negatives(gathered.rows, global, global.own.begin, global.own.end, context);
    gathered.rows.requires_grad_();
    batch_losses = model_.batch_losses(gathered.rows, global, partition_of(global));
    const at::Tensor total = weighted_sum(batch_losses, model_.batch_terms(), options);
    // A loss over pairs that no sample of the batch forms is a constant.
    if (total.requires_grad()) torch::autograd::backward({total}, {});
    embedding_gradient = gathered.rows.grad();
    // Every rank has computed the same gradient of the batch-wide losses' own parameters: it counts once.
    if (communicator_.rank() != 0) parameters.zero_gradients();
  }
  for (size_t m = 0; m < batch.microbatches.size(); ++m) {
    const auto& rows = global.own_microbatches[m];
    models::ForwardOutput result;
    {
      const Autocast autocast(options_.bf16, reader_.device().type());
      result = model_.forward(batch.microbatches[m], gathered.embedded[m], read_hard_negatives(global, rows, partners),
                              global, context);
    }
    const at::Tensor total = weighted_sum(result.losses, model_.row_terms(), options);
    torch::autograd::variable_list roots{total}, seeds{at::ones_like(total)};
    if (embedding_gradient.defined()) {
      roots.push_back(gathered.embedded[m].rows);
      seeds.push_back(embedding_gradient.slice(0, rows.begin, rows.end));
    }
    torch::autograd::backward(roots, seeds);
    visit(rows, result, total);
    gathered.embedded[m] = {};  // frees the graph before the next microbatch builds its own
  }
  return batch_losses;
}

BatchOutcome Step::train(const batch::LoadedBatch& batch, uint64_t seed) {
  auto& parameters = model_.parameters();
  const auto options = parameters.values().options();
  std::vector<at::Tensor> outputs{at::empty({0, model_.outputs()}, options)}, row_values;
  const auto batch_losses =
      forward_backward(batch, {seed, static_cast<uint32_t>(batch.number), true},
                       [&](const batch::Rows& rows, const models::ForwardOutput& result, const at::Tensor&) {
                         row_values.push_back(values_of(result.losses, options));
                         outputs.push_back(result.outputs.detach());
                         if (!tree_sum_) return;
                         // Microbatch 0 takes along the gradient of the batch-wide losses' own parameters, which rank 0
                         // has kept.
                         parameters.finish_gradients();
                         tree_sum_->add(rows.microbatch, parameters.gradients());
                         parameters.zero_gradients();
                       });
  parameters.finish_gradients();
  const distributed::CollectiveLabel label("gradients");
  if (tree_sum_)
    tree_sum_->reduce(communicator_, parameters.gradients());
  else
    communicator_.all_reduce_sum(parameters.gradients());
  BatchOutcome outcome;
  outcome.outputs = at::cat(outputs, 0);
  finish_losses(outcome, batch.global, row_values, batch_losses);
  return outcome;
}

BatchOutcome Step::evaluate(const batch::LoadedBatch& batch, uint64_t seed, bool with_losses) {
  const at::NoGradGuard no_gradient;
  const models::StepContext context{seed, kEvaluation | static_cast<uint32_t>(batch.number), false};
  const auto& global = batch.global;
  Gathered gathered = embed_and_gather(batch, context, with_losses);
  std::vector<at::Tensor> batch_losses;
  std::vector<models::HardNegatives> partners;
  if (gathered.rows.defined()) {
    batch_losses = model_.batch_losses(gathered.rows, global, partition_of(global));
    partners = model_.hard_negatives(gathered.rows, global, global.own.begin, global.own.end, context);
  }

  BatchOutcome outcome;
  const auto options = model_.parameters().values().options();
  std::vector<at::Tensor> outputs{at::empty({0, model_.outputs()}, options)}, row_values;
  for (size_t m = 0; m < batch.microbatches.size(); ++m) {
    const Autocast autocast(options_.bf16, reader_.device().type());
    const auto result =
        model_.forward(batch.microbatches[m], gathered.embedded[m],
                       read_hard_negatives(global, global.own_microbatches[m], partners), global, context);
    row_values.push_back(values_of(result.losses, options));
    outputs.push_back(result.outputs);
  }
  outcome.outputs = at::cat(outputs, 0);
  if (with_losses) finish_losses(outcome, batch.global, row_values, batch_losses);
  return outcome;
}

std::string Step::diagnose(const batch::LoadedBatch& batch, uint64_t seed) {
  auto& parameters = model_.parameters();
  const auto& ids = reader_.dataset().index().ids;
  std::string found;
  const auto batch_losses = forward_backward(
      batch, {seed, static_cast<uint32_t>(batch.number), true},
      [&](const batch::Rows& rows, const models::ForwardOutput& result, const at::Tensor& total) {
        const bool gradient_finite = std::isfinite(optim::l2_norm(parameters.gradients()).item<double>());
        parameters.zero_gradients();  // the next microbatch is judged by its own
        if (std::isfinite(total.item<double>()) && gradient_finite) return;
        found += fmt::format("  rank {}:", communicator_.rank());
        for (size_t i = 0; i < result.losses.size(); ++i)
          found += fmt::format(" {} {:f},", model_.row_terms()[i].name, result.losses[i].item<double>());
        found += gradient_finite ? " gradient finite" : " gradient not finite";
        std::string names, bad;
        int64_t bad_count = 0;
        for (int64_t i = 0; i < rows.size(); ++i) {
          const std::string& id = ids[batch.global.samples[rows.begin + i]];
          names += (i ? ", " : "") + id;
          if (result.outputs[i].isfinite().all().item<bool>()) continue;
          bad += (bad_count++ ? ", " : "") + id;
        }
        found += "; samples " + names + "; outputs not finite: " +
                 (bad_count == 0             ? "none"
                  : bad_count == rows.size() ? "all"
                                             : bad);
        found += "\n";
      });
  std::string all;
  for (size_t i = 0; i < batch_losses.size(); ++i)
    if (const double value = batch_losses[i].item<double>(); !std::isfinite(value))
      all += fmt::format("  batch-wide loss term {}: {:f}\n", model_.batch_terms()[i].name, value);
  const distributed::CollectiveLabel label("non-finite step");
  for (const auto& part : communicator_.all_gather_bytes(found)) all += part;
  return all.empty() ? "  every microbatch is finite by itself: only their sum is not\n" : all;
}

}  // namespace muster::training
