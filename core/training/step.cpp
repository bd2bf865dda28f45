#include "core/training/step.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/optim/adamw.h"
#include "core/training/autocast.h"

namespace muster::training {
namespace {

// Evaluations use step numbers that training never reaches.
constexpr uint32_t kEvaluation = 0x80000000u;

at::Tensor weighted_sum(const std::vector<models::LossTerm>& terms, const at::TensorOptions& options) {
  at::Tensor total = at::zeros({}, options);
  for (const auto& term : terms) total = total + term.value * term.weight;
  return total;
}

void add_values(at::Tensor& sums, const std::vector<models::LossTerm>& terms) {
  for (size_t i = 0; i < terms.size(); ++i)
    sums.mutable_data_ptr<double>()[i] += terms[i].value.detach().to(at::kDouble).item<double>();
}

}  // namespace

Step::Step(models::Model& model, const batch::BatchReader& reader, distributed::Communicator& communicator, bool bf16)
    : model_(model), reader_(reader), communicator_(communicator), bf16_(bf16) {}

Step::Gathered Step::embed_and_gather(const GlobalBatchPlan& plan, const models::Pass& pass) {
  Gathered gathered;
  std::vector<at::Tensor> own;
  const at::ScalarType dtype = model_.parameters().dtype();
  {
    const Autocast autocast(bf16_);
    for (const auto& rows : plan.own_microbatches()) {
      gathered.batches.push_back(plan.read(reader_, rows));
      gathered.embedded.push_back(model_.embed(gathered.batches.back(), pass));
      auto& embedded = gathered.embedded.back();
      if (model_.embedding_dim() == 0) continue;
      embedded.rows = embedded.rows.to(dtype);
      own.push_back(embedded.rows.detach());
    }
  }
  if (model_.embedding_dim() == 0) return gathered;
  const at::Tensor mine = own.empty() ? at::empty({0, model_.embedding_dim()}, model_.parameters().values().options())
                                      : at::cat(own, 0).contiguous();
  gathered.rows = communicator_.all_gather_rows(mine, plan.row_counts());
  return gathered;
}

std::vector<batch::Ragged> Step::read_partners(const GlobalBatchPlan& plan, const GlobalBatchPlan::Rows& rows,
                                               const at::Tensor& gathered, const models::GlobalBatch& global,
                                               const models::Pass& pass) const {
  std::vector<batch::Ragged> frames;
  // Any rank reads any sample's frames from the data file: nothing is sent.
  for (const auto& partner : model_.partners(gathered, global, rows.begin, rows.end, pass)) {
    std::vector<int64_t> samples;
    for (const int64_t row : partner.global_rows) samples.push_back(plan.samples()[row]);
    frames.push_back(reader_.read_modality(partner.modality, samples));
  }
  return frames;
}

void Step::finish_losses(BatchOutcome& outcome, at::Tensor row_values, const std::vector<models::LossTerm>& batch_terms) {
  communicator_.all_reduce_sum(row_values);
  const auto row_terms = model_.row_terms();
  const auto add = [&](const models::LossTerm& term, double value) {
    outcome.terms.emplace_back(term.name, value);
    outcome.loss += term.weight * value;
  };
  for (size_t i = 0; i < row_terms.size(); ++i) add(row_terms[i], row_values.const_data_ptr<double>()[i]);
  for (const auto& term : batch_terms) add(term, term.value.detach().to(at::kDouble).item<double>());
}

std::vector<models::LossTerm> Step::forward_backward(const GlobalBatchPlan& plan, const models::Pass& pass,
                                                      const MicrobatchVisitor& visit) {
  auto& parameters = model_.parameters();
  const auto options = parameters.values().options();
  const auto global = plan.global(reader_, true);
  parameters.zero_gradients();
  Gathered gathered = embed_and_gather(plan, pass);

  std::vector<models::LossTerm> batch_terms;
  at::Tensor compared, embedding_gradient;
  if (gathered.rows.defined()) {
    compared = gathered.rows.detach();
    gathered.rows.requires_grad_();
    batch_terms = model_.batch_losses(gathered.rows, global);
    const at::Tensor total = weighted_sum(batch_terms, options);
    // A loss over pairs that no sample of the batch forms is a constant.
    if (total.requires_grad()) torch::autograd::backward({total}, {});
    embedding_gradient = gathered.rows.grad();
    // Every rank has computed the same gradient of the batch-wide losses' own parameters: it counts once.
    if (communicator_.rank() != 0) parameters.zero_gradients();
  }
  for (size_t m = 0; m < gathered.batches.size(); ++m) {
    const auto& rows = plan.own_microbatches()[m];
    models::RowResult result;
    {
      const Autocast autocast(bf16_);
      const auto partners = read_partners(plan, rows, compared, global, pass);
      result = model_.rows(gathered.batches[m], gathered.embedded[m], partners, global, pass);
    }
    const at::Tensor total = weighted_sum(result.terms, options);
    torch::autograd::variable_list roots{total}, seeds{at::ones_like(total)};
    if (embedding_gradient.defined()) {
      roots.push_back(gathered.embedded[m].rows);
      seeds.push_back(embedding_gradient.slice(0, rows.begin, rows.end));
    }
    torch::autograd::backward(roots, seeds);
    visit(rows, result, total);
    gathered.embedded[m] = {};  // frees the graph before the next microbatch builds its own
  }
  return batch_terms;
}

BatchOutcome Step::train(const GlobalBatchPlan& plan, uint64_t seed, uint32_t step) {
  auto& parameters = model_.parameters();
  std::vector<at::Tensor> outputs{at::empty({0, model_.outputs()}, parameters.values().options())};
  at::Tensor row_values = at::zeros({static_cast<int64_t>(model_.row_terms().size())}, at::kDouble);
  const auto batch_terms =
      forward_backward(plan, {seed, step, true}, [&](const auto&, const models::RowResult& result, const at::Tensor&) {
        add_values(row_values, result.terms);
        outputs.push_back(result.outputs.detach());
      });
  parameters.finish_gradients();
  communicator_.all_reduce_sum(parameters.gradients());
  BatchOutcome outcome;
  outcome.outputs = at::cat(outputs, 0);
  finish_losses(outcome, row_values, batch_terms);
  return outcome;
}

BatchOutcome Step::evaluate(const GlobalBatchPlan& plan, uint64_t seed, uint32_t batch_number, bool with_losses) {
  const at::NoGradGuard no_gradient;
  const models::Pass pass{seed, kEvaluation | batch_number, false};
  const auto global = plan.global(reader_, with_losses);
  Gathered gathered = embed_and_gather(plan, pass);
  std::vector<models::LossTerm> batch_terms;
  if (gathered.rows.defined() && with_losses) batch_terms = model_.batch_losses(gathered.rows, global);

  BatchOutcome outcome;
  std::vector<at::Tensor> outputs{at::empty({0, model_.outputs()}, model_.parameters().values().options())};
  at::Tensor row_values = at::zeros({static_cast<int64_t>(model_.row_terms().size())}, at::kDouble);
  for (size_t m = 0; m < gathered.batches.size(); ++m) {
    const Autocast autocast(bf16_);
    std::vector<batch::Ragged> partners;
    if (with_losses) partners = read_partners(plan, plan.own_microbatches()[m], gathered.rows, global, pass);
    else gathered.batches[m].labels = at::Tensor();
    const auto result = model_.rows(gathered.batches[m], gathered.embedded[m], partners, global, pass);
    add_values(row_values, result.terms);
    outputs.push_back(result.outputs);
  }
  outcome.outputs = at::cat(outputs, 0);
  if (with_losses) finish_losses(outcome, row_values, batch_terms);
  return outcome;
}

std::string Step::diagnose(const GlobalBatchPlan& plan, uint64_t seed, uint32_t step) {
  auto& parameters = model_.parameters();
  const auto& ids = reader_.dataset().index().ids;
  std::string found;
  const auto batch_terms = forward_backward(
      plan, {seed, step, true}, [&](const GlobalBatchPlan::Rows& rows, const models::RowResult& result, const at::Tensor& total) {
        const bool gradient_finite = std::isfinite(optim::l2_norm(parameters.gradients()));
        parameters.zero_gradients();  // the next microbatch is judged by its own
        if (std::isfinite(total.item<double>()) && gradient_finite) return;
        found += "  rank " + std::to_string(communicator_.rank()) + ":";
        for (const auto& term : result.terms) found += " " + term.name + " " + std::to_string(term.value.item<double>()) + ",";
        found += gradient_finite ? " gradient finite" : " gradient not finite";
        std::string names, bad;
        int64_t bad_count = 0;
        for (int64_t i = 0; i < rows.size(); ++i) {
          const std::string& id = ids[plan.samples()[rows.begin + i]];
          names += (i ? ", " : "") + id;
          if (result.outputs[i].isfinite().all().item<bool>()) continue;
          bad += (bad_count++ ? ", " : "") + id;
        }
        found += "; samples " + names + "; outputs not finite: " +
                 (bad_count == 0 ? "none" : bad_count == rows.size() ? "all" : bad);
        found += "\n";
      });
  std::string all;
  for (const auto& term : batch_terms)
    if (!std::isfinite(term.value.item<double>()))
      all += "  batch-wide loss term " + term.name + ": " + std::to_string(term.value.item<double>()) + "\n";
  for (const auto& part : communicator_.all_gather_bytes(found)) all += part;
  return all.empty() ? "  every microbatch is finite by itself: only their sum is not\n" : all;
}

}  // namespace muster::training
