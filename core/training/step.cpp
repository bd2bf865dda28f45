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
  if (!options.reproducible) return;
  for (auto* sum : {&model_sum_, &encoder_sum_})
    sum->emplace(options.microbatches, batch::microbatch_boundaries(division_), communicator.rank());
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

at::Tensor Step::encode(const batch::Batch& raw, int64_t modality, const models::StepContext& context) const {
  return model_.encoder(modality)
      ->encode(model_.parameters(), raw.modalities[modality], raw.batch_index, context)
      .values.to(model_.parameters().dtype());
}

Step::Gathered Step::embed_and_gather(const batch::LoadedBatch& batch, const models::StepContext& context,
                                      bool gather) {
  Gathered gathered;
  std::vector<at::Tensor> own;
  const at::ScalarType dtype = model_.parameters().dtype();
  gather = gather && model_.embedding_dim() > 0;
  {
    const Autocast autocast(options_.bf16, reader_.device().type());
    for (const auto& raw : batch.microbatches) {
      Encoded encoded{raw, {}, {}};
      for (size_t m = 0; m < raw.modalities.size(); ++m) {
        const models::Encoder* const encoder = model_.encoder(static_cast<int64_t>(m));
        encoded.frames.emplace_back();
        if (encoder == nullptr) continue;
        at::Tensor frames;
        {
          const at::AutoGradMode graph(at::GradMode::is_enabled() && !options_.recompute_encoders);
          frames = encode(raw, static_cast<int64_t>(m), context);
        }
        batch::Ragged& seen = encoded.batch.modalities[m];
        seen.values = frames.detach();
        for (size_t i = 0; i < seen.offsets.size(); ++i)
          seen.offsets[i] =
              i == 0 ? 0
                     : seen.offsets[i - 1] + encoder->frames_of(raw.modalities[m].length(static_cast<int64_t>(i) - 1));
        if (!at::GradMode::is_enabled() || !encoder->is_trained()) continue;
        seen.values.requires_grad_();
        if (!options_.recompute_encoders) encoded.frames[m] = frames;
      }
      encoded.embedded = model_.embed(encoded.batch, context);
      if (gather) {
        encoded.embedded.rows = encoded.embedded.rows.to(dtype);
        own.push_back(encoded.embedded.rows.detach());
      }
      gathered.microbatches.push_back(std::move(encoded));
    }
  }
  if (!gather) return gathered;
  const at::Tensor mine = own.empty() ? at::empty({0, model_.embedding_dim()}, model_.parameters().values().options())
                                      : at::cat(own, 0).contiguous();
  const distributed::CollectiveLabel label("embeddings");
  gathered.rows = communicator_.all_gather_rows(mine, batch.global.row_counts);
  return gathered;
}

PartnerFrames Step::choose_partners(const Gathered& gathered, const batch::GlobalBatch& global,
                                    const models::StepContext& context) {
  std::vector<models::HardNegatives> partners;
  const bool of_all = PartnerFrames::are_exchanged(model_, global);
  const int64_t begin = of_all ? 0 : global.own.begin, end = of_all ? global.size() : global.own.end;
  if (gathered.rows.defined()) partners = model_.hard_negatives(gathered.rows, global, begin, end, context);
  PartnerFrames frames(model_, reader_, global, partners, begin, communicator_);
  if (!of_all) return frames;  // nothing to fetch
  std::vector<batch::Batch> own;
  for (const auto& microbatch : gathered.microbatches) own.push_back(microbatch.batch);
  frames.fetch(own);
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
                                               const MicrobatchVisitor& visitor) {
  auto& parameters = model_.parameters();
  const auto options = parameters.values().options();
  const auto& global = batch.global;
  parameters.zero_gradients();
  Gathered gathered = embed_and_gather(batch, context, true);
  PartnerFrames partners = choose_partners(gathered, global, context);

  std::vector<at::Tensor> batch_losses;
  at::Tensor embedding_gradient;
  if (gathered.rows.defined()) {
    gathered.rows.requires_grad_();
    batch_losses = model_.batch_losses(gathered.rows, global, partition_of(global));
    const at::Tensor total = weighted_sum(batch_losses, model_.batch_terms(), options);
    // A loss over pairs that no sample of the batch forms is a constant.
    if (total.requires_grad()) torch::autograd::backward({total}, {});
    embedding_gradient = gathered.rows.grad();
    // Every rank has computed the same gradient of the batch-wide losses' own parameters: it counts once.
    if (communicator_.rank() != 0) parameters.zero_gradients();
  }
  for (size_t m = 0; m < gathered.microbatches.size(); ++m) {
    const auto& rows = global.own_microbatches[m];
    Encoded& microbatch = gathered.microbatches[m];
    models::ForwardOutput result;
    const auto partner_frames = partners.of_microbatch(m, /*with_gradient=*/true);
    {
      const Autocast autocast(options_.bf16, reader_.device().type());
      result = model_.forward(microbatch.batch, microbatch.embedded, partner_frames, global, context);
    }
    const at::Tensor total = weighted_sum(result.losses, model_.row_terms(), options);
    torch::autograd::variable_list roots{total}, seeds{at::ones_like(total)};
    if (embedding_gradient.defined()) {
      roots.push_back(microbatch.embedded.rows);
      seeds.push_back(embedding_gradient.slice(0, rows.begin, rows.end));
    }
    torch::autograd::backward(roots, seeds);
    partners.keep_gradients(m, partner_frames);
    visitor.after_rows(rows, result, total);
    microbatch.embedded = {};  // frees the graph before the next microbatch builds its own
  }
  encoders_backward(batch, context, gathered, partners, visitor);
  return batch_losses;
}

void Step::encoders_backward(const batch::LoadedBatch& batch, const models::StepContext& context, Gathered& gathered,
                             PartnerFrames& partners, const MicrobatchVisitor& visitor) {
  std::vector<std::vector<at::Tensor>> gradients;
  for (const auto& microbatch : gathered.microbatches) {
    gradients.emplace_back();
    for (const auto& modality : microbatch.batch.modalities) {
      const at::Tensor& frames = modality.values;
      gradients.back().push_back(!frames.requires_grad()   ? at::Tensor()
                                 : frames.grad().defined() ? frames.grad()
                                                           : at::zeros_like(frames));
    }
  }
  partners.give_back(gradients);
  for (size_t i = 0; i < gathered.microbatches.size(); ++i) {
    Encoded& microbatch = gathered.microbatches[i];
    torch::autograd::variable_list roots, seeds;
    for (size_t m = 0; m < microbatch.batch.modalities.size(); ++m) {
      if (!gradients[i][m].defined()) continue;
      if (options_.recompute_encoders) {
        const Autocast autocast(options_.bf16, reader_.device().type());
        microbatch.frames[m] = encode(batch.microbatches[i], static_cast<int64_t>(m), context);
      }
      if (!microbatch.frames[m].requires_grad()) continue;  // layerdrop has left out all that is trained
      roots.push_back(std::move(microbatch.frames[m]));
      seeds.push_back(std::move(gradients[i][m]));
    }
    if (roots.empty()) continue;
    torch::autograd::backward(roots, seeds);
    microbatch = {};
    visitor.after_encoders(batch.global.own_microbatches[i]);
  }
}

BatchOutcome Step::train(const batch::LoadedBatch& batch, uint64_t seed) {
  auto& parameters = model_.parameters();
  const auto options = parameters.values().options();
  std::vector<at::Tensor> outputs{at::empty({0, model_.outputs()}, options)}, row_values;
  const int64_t border = parameters.encoders_begin(), end = parameters.values().numel();
  const bool has_encoders = border < end;
  MicrobatchVisitor visitor;
  visitor.after_rows = [&](const batch::Rows& rows, const models::ForwardOutput& result, const at::Tensor&) {
    row_values.push_back(values_of(result.losses, options));
    outputs.push_back(result.outputs.detach());
    if (!model_sum_) return;
    // Microbatch 0 takes along the gradient of the batch-wide losses' own parameters, which rank 0 has kept.
    parameters.finish_gradients();
    model_sum_->add(rows.microbatch, parameters.gradients().narrow(0, 0, border));
    parameters.zero_gradients();
  };
  visitor.after_encoders = [&](const batch::Rows& rows) {
    if (!encoder_sum_) return;
    parameters.finish_gradients();
    encoder_sum_->add(rows.microbatch, parameters.gradients().narrow(0, border, end - border));
    parameters.zero_gradients();
  };
  const auto batch_losses = forward_backward(batch, {seed, static_cast<uint32_t>(batch.number), true}, visitor);
  parameters.finish_gradients();
  const distributed::CollectiveLabel label("gradients");
  if (model_sum_) {
    model_sum_->reduce(communicator_, parameters.gradients().narrow(0, 0, border));
    if (has_encoders) encoder_sum_->reduce(communicator_, parameters.gradients().narrow(0, border, end - border));
  } else {
    communicator_.all_reduce_sum(parameters.gradients());
  }
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
  PartnerFrames partners = choose_partners(gathered, global, context);
  std::vector<at::Tensor> batch_losses;
  if (gathered.rows.defined()) batch_losses = model_.batch_losses(gathered.rows, global, partition_of(global));

  BatchOutcome outcome;
  const auto options = model_.parameters().values().options();
  const auto details_width = static_cast<int64_t>(model_.detail_names().size());
  std::vector<at::Tensor> outputs{at::empty({0, model_.outputs()}, options)}, row_values;
  std::vector<at::Tensor> details{at::empty({0, details_width}, options)};
  for (size_t m = 0; m < gathered.microbatches.size(); ++m) {
    const Autocast autocast(options_.bf16, reader_.device().type());
    Encoded& microbatch = gathered.microbatches[m];
    const auto result =
        model_.forward(microbatch.batch, microbatch.embedded, partners.of_microbatch(m, false), global, context);
    row_values.push_back(values_of(result.losses, options));
    outputs.push_back(result.outputs);
    if (details_width > 0) details.push_back(result.details);
    microbatch = {};
  }
  outcome.outputs = at::cat(outputs, 0);
  outcome.details = at::cat(details, 0);
  if (with_losses) finish_losses(outcome, batch.global, row_values, batch_losses);
  return outcome;
}

std::string Step::diagnose(const batch::LoadedBatch& batch, uint64_t seed) {
  auto& parameters = model_.parameters();
  const auto& ids = reader_.dataset().index().ids;
  std::string found;
  MicrobatchVisitor visitor;
  const auto gradient_is_finite = [&] {
    const bool finite = std::isfinite(optim::l2_norm(parameters.gradients()).item<double>());
    parameters.zero_gradients();  // the next microbatch is judged by its own
    return finite;
  };
  const auto names_of = [&](const batch::Rows& rows) {
    std::string names;
    for (int64_t row = rows.begin; row < rows.end; ++row)
      names += (row > rows.begin ? ", " : "") + ids[batch.global.samples[row]];
    return names;
  };
  visitor.after_encoders = [&](const batch::Rows& rows) {
    if (!gradient_is_finite())
      found += fmt::format("  rank {}: the encoders' gradient is not finite; samples {}\n", communicator_.rank(),
                           names_of(rows));
  };
  visitor.after_rows = [&](const batch::Rows& rows, const models::ForwardOutput& result, const at::Tensor& total) {
    const bool gradient_finite = gradient_is_finite();
    if (std::isfinite(total.item<double>()) && gradient_finite) return;
    found += fmt::format("  rank {}:", communicator_.rank());
    for (size_t i = 0; i < result.losses.size(); ++i)
      found += fmt::format(" {} {:f},", model_.row_terms()[i].name, result.losses[i].item<double>());
    found += gradient_finite ? " gradient finite" : " gradient not finite";
    std::string bad;
    int64_t bad_count = 0;
    for (int64_t i = 0; i < rows.size(); ++i) {
      if (result.outputs[i].isfinite().all().item<bool>()) continue;
      bad += (bad_count++ ? ", " : "") + ids[batch.global.samples[rows.begin + i]];
    }
    found += "; samples " + names_of(rows) + "; outputs not finite: " +
             (bad_count == 0             ? "none"
              : bad_count == rows.size() ? "all"
                                         : bad);
    found += "\n";
  };
  const auto batch_losses = forward_backward(batch, {seed, static_cast<uint32_t>(batch.number), true}, visitor);
  std::string all;
  for (size_t i = 0; i < batch_losses.size(); ++i)
    if (const double value = batch_losses[i].item<double>(); !std::isfinite(value))
      all += fmt::format("  batch-wide loss term {}: {:f}\n", model_.batch_terms()[i].name, value);
  const distributed::CollectiveLabel label("non-finite step");
  for (const auto& part : communicator_.all_gather_bytes(found)) all += part;
  return all.empty() ? "  every microbatch is finite by itself: only their sum is not\n" : all;
}

}  // namespace muster::training
