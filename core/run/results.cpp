#include "core/run/results.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace muster::run {
namespace {

// Enough digits to read the same number back.
std::string exact(double value) { return fmt::format("{:.17g}", value); }

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
  for (const auto& [name, value] : values) object[name] = number_or_null(value);
  return object;
}

nlohmann::json to_json(const Evaluation& evaluation) {
  nlohmann::json object = {{"loss", number_or_null(evaluation.loss)},
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
    const json all = read_json_object(path);
    const auto metrics = [&](const char* split) {
      return all.contains(split) ? all[split].at("metrics") : json::object();
    };
    const json& value = all.at("best").at("value");
    return {metrics("valid"), metrics("test"), all["best"].at("selected_by"),
            value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>(),
            all.value("model_note", std::string())};
  } catch (const json::exception&) {
    throw Error(ExitCode::kBadData, fmt::format("{}: is missing, or is not what a finished run leaves there", path));
  }
}

std::string results_table(const std::vector<ResultColumn>& columns) {
  std::string table(16, ' ');
  for (const auto& column : columns) table += fmt::format("{:>16}", column.title);
  for (size_t row = 0; row < columns[0].metrics.size(); ++row) {
    table += fmt::format("\n{:16}", columns[0].metrics[row].first);
    for (const auto& column : columns) {
      const double value = column.metrics[row].second;
      table += std::isnan(value) ? fmt::format("{:>16}", "-") : fmt::format("{:16.4f}", value);
    }
  }
  return table + "\n";
}

std::string confusion_table(const std::vector<std::string>& class_names,
                            const std::vector<std::vector<int64_t>>& confusion) {
  size_t width = 8;
  for (const auto& name : class_names) width = std::max(width, name.size() + 2);
  std::string table = fmt::format("{:18}", "label \\ predicted");
  for (const auto& name : class_names) table += fmt::format("{:>{}}", name, width);
  for (size_t label = 0; label < confusion.size(); ++label) {
    table += fmt::format("\n{:18}", class_names[label]);
    for (const int64_t count : confusion[label]) table += fmt::format("{:>{}}", count, width);
  }
  return table + "\n";
}

}  // namespace muster::run
