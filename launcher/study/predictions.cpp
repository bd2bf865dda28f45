#include "launcher/study/predictions.h"

#include <algorithm>
#include <cstdlib>
#include <set>

#include "base/error.h"
#include "core/config/text_file.h"
#include "core/metrics/metrics.h"

namespace muster::launcher {

namespace {

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
    else if (!quoted && c == '\n')
      records.push_back({""});
    else
      records.back().back() += c;
  }
  records.pop_back();  // behind the last newline
  return records;
}

constexpr const char* kProbability = "probability_";

}  // namespace

metrics::Metrics pooled_metrics(const std::vector<std::string>& files) {
  std::set<std::string> ids;
  std::vector<std::string> header, labels, predictions;
  for (const auto& path : files) {
    const auto records = read_csv(config::read_text_file(path));
    const auto wrong = [&](const std::string& what) {
      return Error(ExitCode::kBadData, path + ": " + what + ". Remove that run's folder to have it trained again.");
    };
    if (records.empty() || records[0].size() < 3 || records[0][1] != "label")
      throw wrong("these are no predictions with labels");
    if (header.empty()) header = records[0];
    if (records[0] != header) throw wrong("its classes are not those of " + files[0]);
    for (size_t i = 1; i < records.size(); ++i) {
      if (records[i].size() != header.size()) throw wrong("line " + std::to_string(i + 1) + " is not whole");
      if (!ids.insert(records[i][0]).second)
        throw wrong("sample " + records[i][0] + " is in the test split of an earlier fold too");
      labels.push_back(records[i][1]);
      predictions.push_back(records[i][2]);
    }
  }
  if (header.size() == 3) {
    const auto numbers = [](const std::vector<std::string>& texts) {
      std::vector<double> values;
      for (const auto& text : texts) values.push_back(std::strtod(text.c_str(), nullptr));
      return values;
    };
    return metrics::regression_metrics(numbers(predictions), numbers(labels));
  }
  const auto classes = [&](const std::vector<std::string>& texts) {
    std::vector<int64_t> values;
    for (const auto& text : texts) {
      const auto found = std::find(header.begin() + 3, header.end(), kProbability + text);
      if (found == header.end()) throw Error(ExitCode::kBadData, files[0] + ": class " + text + " has no column");
      values.push_back(found - header.begin() - 3);
    }
    return values;
  };
  return metrics::classification_metrics(classes(predictions), classes(labels), static_cast<int64_t>(header.size()) - 3)
      .metrics;
}

}  // namespace muster::launcher
