#include "core/run/results.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include <fmt/format.h>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace muster::run {
namespace {

std::string padded(const std::string& text, size_t width, bool left = false) {
  const std::string space(text.size() < width ? width - text.size() : 0, ' ');
  return left ? text + space : space + text;
}

constexpr uint64_t kLargestResult = 64 << 20;  // bytes

// Enough digits to read the same number back.
std::string exact(double value) { return fmt::format("{:.17g}", value); }

// Where a result is not better than what needs no input.
std::string warning_of(const Report& report) {
  const ResultColumn &result = report.columns[report.columns.size() - 2], &baseline = report.columns.back();
  const std::string& name = report.default_metric;
  const double value = metrics::metric_value(result.metrics, name),
               trivial = metrics::metric_value(baseline.metrics, name);
  const bool better = metrics::higher_is_better(name) ? value > trivial : value < trivial;
  if (better) return "";
  return fmt::format(
      "NOT better than the baseline: {} on {} is {:.4f}, that of the trivial prediction {:.4f}. Nothing "
      "was learnt that generalises.\n",
      name, result.title, value, trivial);
}

}  // namespace

at::Tensor Predictions::probabilities() const { return at::softmax(outputs, 1); }

std::vector<int64_t> Predictions::classes() const {
  std::vector<int64_t> classes;
  const double* row = outputs.const_data_ptr<double>();
  for (int64_t i = 0; i < outputs.size(0); ++i, row += outputs.size(1))
    classes.push_back(std::max_element(row, row + outputs.size(1)) - row);
  return classes;
}

std::vector<double> Predictions::values() const {
  return {outputs.const_data_ptr<double>(), outputs.const_data_ptr<double>() + outputs.numel()};
}

nlohmann::json to_json(const std::vector<std::pair<std::string, double>>& values) {
  nlohmann::json object = nlohmann::json::object();
  for (const auto& [name, value] : values)
    object[name] = std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
  return object;
}

nlohmann::json to_json(const Evaluation& evaluation) {
  nlohmann::json object = {
      {"loss", std::isfinite(evaluation.loss) ? nlohmann::json(evaluation.loss) : nlohmann::json()},
      {"terms", to_json(evaluation.terms)},
      {"metrics", to_json(evaluation.metrics)},
      {"samples", evaluation.predictions.samples.size()}};
  if (!evaluation.confusion.empty()) object["confusion"] = evaluation.confusion;
  return object;
}

std::string predictions_csv(const data::DatasetIndex& index, const Predictions& predictions) {
  const bool classification = index.task == data::Task::kClassification;
  const bool labels = index.has_labels();
  std::string csv = labels ? "id,label,prediction" : "id,prediction";
  if (classification)
    for (const auto& name : index.class_names) csv += "," + csv_field("probability_" + name);
  csv += "\n";
  const auto classes = classification ? predictions.classes() : std::vector<int64_t>();
  const auto values = classification ? std::vector<double>() : predictions.values();
  const at::Tensor probabilities = classification ? predictions.probabilities() : at::Tensor();
  for (size_t i = 0; i < predictions.samples.size(); ++i) {
    const int64_t sample = predictions.samples[i];
    csv += csv_field(index.ids[sample]);
    if (labels)
      csv += "," + (classification ? csv_field(index.class_names[static_cast<int64_t>(index.labels[sample])])
                                   : exact(index.labels[sample]));
    csv += "," + (classification ? csv_field(index.class_names[classes[i]]) : exact(values[i]));
    if (classification)
      for (int64_t c = 0; c < probabilities.size(1); ++c)
        csv += "," + exact(probabilities[static_cast<int64_t>(i)][c].item<double>());
    csv += "\n";
  }
  return csv;
}

RunResult read_result(const std::string& run_directory) {
  using nlohmann::json;
  const std::string path = run_directory + "/result.json";
  try {
    const json all = json::parse(read_file_if_there(path, kLargestResult).value_or(""));
    const auto metrics = [&](const char* split) {
      return all.contains(split) ? all[split].at("metrics") : json::object();
    };
    const json& value = all.at("best").at("value");
    return {metrics("valid"), metrics("test"), all["best"].at("selected_by"),
            value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>(),
            all.value("model_note", std::string())};
  } catch (const json::exception&) {
    throw Error(ExitCode::kBadData, path + ": is missing, or is not what a finished run leaves there");
  }
}

std::string results_table(const std::vector<ResultColumn>& columns) {
  constexpr size_t kName = 16, kColumn = 16;
  std::string table = padded("", kName, true);
  for (const auto& column : columns) table += padded(column.title, kColumn);
  table += "\n";
  for (size_t row = 0; row < columns[0].metrics.size(); ++row) {
    table += padded(columns[0].metrics[row].first, kName, true);
    for (const auto& column : columns) {
      const double value = column.metrics[row].second;
      table += padded(std::isnan(value) ? "-" : fmt::format("{:.4f}", value), kColumn);
    }
    table += "\n";
  }
  return table;
}

std::string confusion_table(const std::vector<std::string>& class_names,
                            const std::vector<std::vector<int64_t>>& confusion) {
  size_t width = 8;
  for (const auto& name : class_names) width = std::max(width, name.size() + 2);
  std::string table = padded("label \\ predicted", 18, true);
  for (const auto& name : class_names) table += padded(name, width);
  table += "\n";
  for (size_t label = 0; label < confusion.size(); ++label) {
    table += padded(class_names[label], 18, true);
    for (const int64_t count : confusion[label]) table += padded(std::to_string(count), width);
    table += "\n";
  }
  return table;
}

void print_report(const Report& report) {
  std::string text = fmt::format("\n{}: best weights of step {} of {}{}\n", report.name, report.best_step,
                                 report.last_step, report.stopped_early ? " (stopped early)" : "");
  if (report.skipped_steps > 0) text += fmt::format("{} steps were skipped as non-finite\n", report.skipped_steps);
  if (!report.columns.empty()) text += "\n" + results_table(report.columns) + "\n";
  if (!report.confusion.empty()) text += confusion_table(report.class_names, report.confusion) + "\n";
  if (!report.columns.empty())
    text += fmt::format("baseline: what predicting the training {} for every sample scores\n",
                        report.regression ? "median" : "majority class") +
            warning_of(report);
  if (!report.note.empty()) text += report.note + "\n";
  if (report.temperature && *report.temperature <= 0)
    text += fmt::format(
        "the learnt temperature of the best weights is {:g}: as a divisor it flips the sign of every similarity\n",
        *report.temperature);
  const int64_t saved = report.checkpoints["saved"], failed = report.checkpoints["failed"];
  if (saved + failed > 0)
    text += fmt::format("checkpoints: {} saved{}; training stood still for {:.3f} s, at most {:.3f} s at a time\n",
                        saved, failed > 0 ? fmt::format(", {} FAILED (logs/checkpoints.jsonl)", failed) : "",
                        report.checkpoints["stall_seconds"].get<double>(),
                        report.checkpoints["longest_stall_seconds"].get<double>());
  std::printf("%srun directory: %s\n", text.c_str(), report.run_directory.c_str());
}

}  // namespace muster::run
