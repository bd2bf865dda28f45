#include "core/training/results.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>

#include "base/error.h"

namespace muster::training {
namespace {

std::string padded(const std::string& text, size_t width, bool left = false) {
  const std::string space(text.size() < width ? width - text.size() : 0, ' ');
  return left ? text + space : space + text;
}

}  // namespace

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

RunResult read_result(const std::string& run_directory) {
  using nlohmann::json;
  const std::string path = run_directory + "/result.json";
  try {
    std::ifstream file(path);
    const json all = json::parse(file);
    const auto metrics = [&](const char* split) {
      return all.contains(split) ? all[split].at("metrics") : json::object();
    };
    const json& value = all.at("best").at("value");
    return {metrics("valid"), metrics("test"), all["best"].at("selected_by"),
            value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>(),
            all.value("model_note", "")};
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
      char text[32];
      std::snprintf(text, sizeof text, "%.4f", column.metrics[row].second);
      table += padded(std::isnan(column.metrics[row].second) ? "-" : text, kColumn);
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

}  // namespace muster::training
