#include "core/training/evaluation.h"

#include <fmt/format.h>

#include "core/metrics/metrics.h"
#include "core/metrics/trivial_baseline.h"
#include "distributed/collective_call.h"

namespace muster::training {
namespace {

// Number: double for values, int64_t for classes.
template <typename Number>
std::vector<Number> labels_of(const data::DatasetIndex& index, const std::vector<int64_t>& samples) {
  std::vector<Number> labels;
  for (const int64_t sample : samples)
    for (int64_t i = 0; i < index.label_width(); ++i) labels.push_back(static_cast<Number>(index.label_of(sample)[i]));
  return labels;
}

void add_metrics(Evaluation& evaluation, const data::DatasetIndex& index) {
  const auto& samples = evaluation.predictions.samples;
  if (index.task == data::Task::kRegression) {
    evaluation.metrics =
        metrics::regression_metrics(evaluation.predictions.values(), labels_of<double>(index, samples));
    return;
  }
  if (index.task == data::Task::kMultilabel) {
    evaluation.metrics = metrics::multilabel_metrics(evaluation.predictions.values(), labels_of<double>(index, samples),
                                                     index.class_names);
    return;
  }
  const auto result =
      metrics::classification_metrics(evaluation.predictions.classes(), labels_of<int64_t>(index, samples),
                                      static_cast<int64_t>(index.class_names.size()));
  evaluation.metrics = result.metrics;
  evaluation.confusion = result.confusion;
}

// The gathered outputs are the same on every rank, so all of them throw.
void require_finite_outputs(const Predictions& predictions, const data::DatasetIndex& index) {
  const at::Tensor finite = predictions.outputs.isfinite().all(1);
  if (finite.all().item<bool>()) return;
  std::string ids;
  int64_t count = 0;
  for (int64_t i = 0; i < finite.size(0); ++i)
    if (!finite[i].item<bool>() && ++count <= 10) ids += (count > 1 ? ", " : "") + index.ids[predictions.samples[i]];
  throw SharedError(ExitCode::kInternal,
                    fmt::format("the model's outputs are not finite for {} of {} samples ({}{}): its weights have "
                                "diverged. Lower optimizer.learning_rate or set optimizer.clip_norm",
                                count, finite.size(0), ids, count > 10 ? ", ..." : ""));
}

}  // namespace

Evaluation evaluate(Step& step, const batch::BatchReader& reader, distributed::Communicator& communicator,
                    const std::vector<int64_t>& samples, int64_t batch_size, uint64_t seed, bool with_losses,
                    bool with_details) {
  Evaluation evaluation;
  evaluation.predictions.samples = samples;
  const int64_t total = static_cast<int64_t>(samples.size());
  std::vector<at::Tensor> outputs, details;
  uint32_t batch_number = 0;
  for (int64_t begin = 0; begin < total; begin += batch_size, ++batch_number) {
    const int64_t end = std::min(total, begin + batch_size);
    const auto batch =
        step.read({samples.begin() + begin, samples.begin() + end}, batch_number, /*with_labels=*/with_losses);
    const auto outcome = step.evaluate(batch, seed, with_losses);
    const distributed::CollectiveLabel label("outputs");
    outputs.push_back(communicator.all_gather_rows(outcome.outputs.contiguous(), batch.global.row_counts));
    if (with_details)
      details.push_back(communicator.all_gather_rows(outcome.details.contiguous(), batch.global.row_counts));
    if (!with_losses) continue;
    const double share = static_cast<double>(end - begin) / static_cast<double>(total);
    evaluation.loss += share * outcome.loss();
    const auto terms = outcome.terms();
    if (evaluation.terms.empty())
      for (const auto& term : terms) evaluation.terms.emplace_back(term.first, 0.0);
    for (size_t i = 0; i < terms.size(); ++i) evaluation.terms[i].second += share * terms[i].second;
  }
  evaluation.predictions.outputs =
      outputs.empty() ? at::empty({0, 1}, at::kDouble) : at::cat(outputs, 0).to(at::kCPU, at::kDouble).contiguous();
  if (!details.empty()) evaluation.predictions.details = at::cat(details, 0).to(at::kCPU, at::kDouble).contiguous();
  require_finite_outputs(evaluation.predictions, reader.dataset().index());
  if (with_losses && total > 0) add_metrics(evaluation, reader.dataset().index());
  return evaluation;
}

std::map<std::string, Evaluation> evaluations_by_group(const data::DatasetIndex& index,
                                                       const Predictions& predictions) {
  std::map<std::string, std::vector<int64_t>> rows;
  for (size_t row = 0; row < predictions.samples.size(); ++row)
    rows[index.groups[static_cast<size_t>(predictions.samples[row])]].push_back(static_cast<int64_t>(row));
  std::map<std::string, Evaluation> evaluations;
  for (const auto& [group, places] : rows) {
    Evaluation& evaluation = evaluations[group];
    for (const int64_t place : places)
      evaluation.predictions.samples.push_back(predictions.samples[static_cast<size_t>(place)]);
    evaluation.predictions.outputs = predictions.outputs.index_select(0, at::tensor(places, at::kLong));
    add_metrics(evaluation, index);
  }
  return evaluations;
}

std::string trivial_prediction(const data::DatasetIndex& index, const std::vector<int64_t>& train) {
  if (index.task == data::Task::kRegression)
    return fmt::format("{:.17g}", metrics::median(labels_of<double>(index, train)));
  const auto classes = static_cast<int64_t>(index.class_names.size());
  if (index.task == data::Task::kMultilabel)
    return fmt::format("{}", fmt::join(metrics::majority_of_each_class(labels_of<double>(index, train), classes), ","));
  return index.class_names[metrics::majority_class(labels_of<int64_t>(index, train), classes)];
}

metrics::Metrics baseline_metrics(const data::DatasetIndex& index, const std::vector<int64_t>& train,
                                  const std::vector<int64_t>& samples) {
  if (index.task == data::Task::kRegression)
    return metrics::regression_baseline(labels_of<double>(index, train), labels_of<double>(index, samples));
  if (index.task == data::Task::kMultilabel)
    return metrics::multilabel_baseline(labels_of<double>(index, train), labels_of<double>(index, samples),
                                        index.class_names);
  return metrics::classification_baseline(labels_of<int64_t>(index, train), labels_of<int64_t>(index, samples),
                                          static_cast<int64_t>(index.class_names.size()))
      .metrics;
}

}  // namespace muster::training
