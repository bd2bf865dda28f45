#include "core/run/results.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <set>

#include <fmt/format.h>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"

namespace muster::run {
namespace {

// Enough digits to read the same number back.
std::string exact(double value) { return fmt::format("{:.17g}", value); }

// Records of RFC 4180, as predictions_csv writes them.
std::vector<std::vector<std::string>> read_csv(const std::string& text) {
  std::vector<std::vector<std::string>> records(1, {""});
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '"' && i + 1 < text.size() && text[i + 1] == '"')
      records.back().back() += text[++i];
    else if (c == '"')
      quoted = !quoted;
    else if (!quoted && c == ',')
      records.back().emplace_back();
    else if (!quoted && c == '\r' && text[i + 1] == '\n')
      continue;  // as an editor has left it; a name with that character is quoted
    else if (!quoted && c == '\n')
      records.push_back({""});
    else
      records.back().back() += c;
  }
  // Behind the last newline nothing is left; otherwise the last record is torn, and keeps what shows it.
  if (!quoted && records.back() == std::vector<std::string>{""}) records.pop_back();
  return records;
}

// Of a file of multi-label predictions, by its header; else 0.
size_t classes_of_rows(const std::vector<std::string>& header) {
  size_t labels = 0;
  while (1 + labels < header.size() && header[1 + labels].rfind("label_", 0) == 0) ++labels;
  return header.size() >= 1 + 3 * labels ? labels : 0;
}

bool is_bit(const std::string& text) { return text == "0" || text == "1"; }

bool is_finite_number(const std::string& text) {
  char* end = nullptr;
  return std::isfinite(std::strtod(text.c_str(), &end)) && end != text.c_str() && *end == '\0';
}

}  // namespace

at::Tensor Predictions::probabilities(data::Task task) const {
  return task == data::Task::kMultilabel ? at::sigmoid(outputs) : at::softmax(outputs, 1);
}

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

namespace {

// The columns of what else the model tells: their names, and those of row i.
std::string detail_names_csv(const Predictions& predictions) {
  std::string csv;
  for (const auto& name : predictions.detail_names) csv += "," + csv_field(name);
  return csv;
}

std::string details_csv(const Predictions& predictions, size_t i) {
  std::string csv;
  const size_t count = predictions.detail_names.size();
  for (size_t d = 0; d < count; ++d) csv += "," + exact(predictions.details.const_data_ptr<double>()[i * count + d]);
  return csv;
}

std::string multilabel_csv(const data::DatasetIndex& index, const Predictions& predictions) {
  const bool labels = index.has_labels();
  std::string csv = "id";
  for (const char* const column : {"label_", "prediction_", "probability_"})
    for (const auto& name : index.class_names)
      if (labels || column != std::string("label_")) csv += "," + csv_field(column + name);
  csv += detail_names_csv(predictions) + "\n";
  const int64_t classes = predictions.outputs.size(1);
  const at::Tensor probabilities = predictions.probabilities(index.task);
  const double* output = predictions.outputs.const_data_ptr<double>();
  const double* probability = probabilities.const_data_ptr<double>();
  for (size_t i = 0; i < predictions.samples.size(); ++i) {
    const int64_t sample = predictions.samples[i];
    csv += csv_field(index.ids[sample]);
    for (int64_t c = 0; labels && c < classes; ++c) csv += index.label_of(sample)[c] > 0 ? ",1" : ",0";
    for (int64_t c = 0; c < classes; ++c) csv += *output++ > 0 ? ",1" : ",0";
    for (int64_t c = 0; c < classes; ++c) csv += "," + exact(*probability++);
    csv += details_csv(predictions, i) + "\n";
  }
  return csv;
}

}  // namespace

std::string predictions_csv(const data::DatasetIndex& index, const Predictions& predictions) {
  if (index.task == data::Task::kMultilabel) return multilabel_csv(index, predictions);
  const bool classification = index.task == data::Task::kClassification;
  const bool labels = index.has_labels();
  std::string csv = labels ? "id,label,prediction" : "id,prediction";
  if (classification)
    for (const auto& name : index.class_names) csv += "," + csv_field("probability_" + name);
  csv += detail_names_csv(predictions) + "\n";
  const auto classes = classification ? predictions.classes() : std::vector<int64_t>();
  const auto values = classification ? std::vector<double>() : predictions.values();
  const at::Tensor probabilities = classification ? predictions.probabilities(index.task) : at::Tensor();
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
    csv += details_csv(predictions, i) + "\n";
  }
  return csv;
}

PredictionScores scores_of_predictions(const std::vector<std::string>& files, const std::vector<int64_t>& rows,
                                       const std::vector<std::string>& constants) {
  std::set<std::string> ids;
  std::vector<std::string> header, labels, predictions;
  size_t classes = 0;  // of multi-label data, which have as many labels and predictions in a row
  const std::string prefix = "probability_";
  size_t classes_end = 0;  // columns behind the classes', or behind the prediction, are the model's details
  for (size_t file = 0; file < files.size(); ++file) {
    const std::string& path = files[file];
    const std::string text = read_file(path, kLargestPredictions);
    const auto records = read_csv(text);
    const auto wrong = [&](const std::string& what) {
      return Error(ExitCode::kBadData, path + ": " + what + ". Remove that run's folder to have it trained again.");
    };
    if (header.empty() && !records.empty()) {
      header = records[0];
      classes = classes_of_rows(header);
    }
    if (records.empty() || records[0].size() < 3 || (records[0][1] != "label" && classes == 0))
      throw wrong("these are no predictions with labels");
    if (classes_end == 0)
      for (classes_end = 3; classes_end < header.size() && header[classes_end].rfind(prefix, 0) == 0;) ++classes_end;
    if (records[0] != header) throw wrong("its classes are not those of " + files[0]);
    std::vector<std::string> constant;  // of multi-label data
    if (classes > 0 && !constants.empty()) {
      const auto rows_of_constant = read_csv(constants[file]);
      if (rows_of_constant.size() != 1 || rows_of_constant[0].size() != classes)
        throw wrong(fmt::format("its trivial prediction has not one value for each of {} classes", classes));
      constant = rows_of_constant[0];
    }
    for (size_t i = 1; i < records.size(); ++i) {
      if (records[i].size() != header.size()) throw wrong(fmt::format("line {} is not whole", i + 1));
      if (classes_end == 3 && !(is_finite_number(records[i][1]) && is_finite_number(records[i][2])))
        throw wrong(fmt::format("line {}: label and prediction must be finite numbers", i + 1));
      if (!ids.insert(records[i][0]).second)
        throw wrong("sample " + records[i][0] + " is in the predictions of another file, or another line, too");
      if (classes == 0) {
        labels.push_back(records[i][1]);
        predictions.push_back(constants.empty() ? records[i][2] : constants[file]);
      }
      for (size_t c = 0; c < classes; ++c) {
        labels.push_back(records[i][1 + c]);
        predictions.push_back(constants.empty() ? records[i][1 + classes + c] : constant[c]);
        if (!is_bit(labels.back()) || !is_bit(predictions.back()))
          throw wrong(fmt::format("line {}: labels and predictions must be 0 or 1", i + 1));
      }
    }
    if (text.back() != '\n') throw wrong(fmt::format("line {} is not whole", records.size()));
    if (const auto there = static_cast<int64_t>(records.size()) - 1; !rows.empty() && rows[file] != there)
      throw wrong(fmt::format("it has {}, but the run's result.json says {}", plural(there, "sample"), rows[file]));
  }
  PredictionScores scores;
  scores.samples = static_cast<int64_t>(ids.size());
  const auto all = [](const std::vector<std::string>& texts, const auto& value_of_text) {
    std::vector<decltype(value_of_text(texts[0]))> values;
    for (const auto& text : texts) values.push_back(value_of_text(text));
    return values;
  };
  const auto number = [](const std::string& text) { return std::strtod(text.c_str(), nullptr); };
  if (classes > 0) {
    for (size_t c = 0; c < classes; ++c) scores.class_names.push_back(header[1 + c].substr(std::strlen("label_")));
    scores.metrics = metrics::multilabel_metrics(all(predictions, number), all(labels, number), scores.class_names);
    return scores;
  }
  if (classes_end == 3) {
    scores.metrics = metrics::regression_metrics(all(predictions, number), all(labels, number));
    return scores;
  }
  header.resize(classes_end);
  for (size_t column = 3; column < classes_end; ++column)
    scores.class_names.push_back(header[column].substr(prefix.size()));
  const auto place = [&](const std::string& text) -> int64_t {
    // csv_field() puts a quote before a name, but not before the column's, which begins with the prefix.
    auto found = std::find(header.begin() + 3, header.end(), prefix + text.substr(text[0] == '\''));
    if (found == header.end()) found = std::find(header.begin() + 3, header.end(), prefix + text);
    if (found == header.end()) throw Error(ExitCode::kBadData, files[0] + ": class " + text + " has no column");
    return found - header.begin() - 3;
  };
  auto found = metrics::classification_metrics(all(predictions, place), all(labels, place),
                                               static_cast<int64_t>(scores.class_names.size()));
  scores.metrics = std::move(found.metrics);
  scores.confusion = std::move(found.confusion);
  return scores;
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
    RunResult result;
    result.validation = metrics("valid");
    result.test = metrics("test");
    result.selected_by = all["best"].at("selected_by");
    result.best_value = value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
    result.model_note = all.value("model_note", std::string());
    const auto samples = [&](const char* split) {
      return all.contains(split) ? all[split].value("samples", int64_t{0}) : 0;
    };
    result.validation_samples = samples("valid");
    result.test_samples = samples("test");
    result.dropped_samples = all.value("dropped_samples", int64_t{-1});
    if (std::min({result.validation_samples, result.test_samples, result.dropped_samples + 1}) < 0)
      throw Error(ExitCode::kBadData, fmt::format("{}: a number of samples is negative", path));
    const json baselines = all.value("trivial_baselines", json::object());
    result.validation_baseline = baselines.value("valid", json::object());
    result.test_baseline = baselines.value("test", json::object());
    result.trivial_prediction = baselines.value("prediction", std::string());
    return result;
  } catch (const json::exception&) {
    throw Error(ExitCode::kBadData, fmt::format("{}: is missing, or is not what a finished run leaves there", path));
  }
}

std::string results_table(const std::vector<ResultColumn>& columns) {
  std::vector<metrics::Metrics> scores;
  for (const auto& column : columns) scores.push_back(column.metrics);
  const auto names = metrics::shown_names(scores);
  size_t width = 16;
  for (const auto& name : names) width = std::max(width, name.size());
  std::string table(width, ' ');
  for (const auto& column : columns) table += fmt::format("{:>16}", column.title);
  for (const auto& name : names) {
    table += fmt::format("\n{:{}}", name, width);
    for (const auto& one : scores) {
      const double value = metrics::value_or_nan(one, name);
      table += std::isnan(value) ? fmt::format("{:>16}", "undefined") : fmt::format("{:16.4f}", value);
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
