#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "core/training/evaluation.h"

namespace muster::training {

// Non-finite numbers become null.
nlohmann::json to_json(const std::vector<std::pair<std::string, double>>& values);

// {"loss", "terms", "metrics", "samples", "confusion"}.
nlohmann::json to_json(const Evaluation& evaluation);

// What a finished run has left in result.json, which conclude() writes.
struct RunResult {
  nlohmann::json validation, test;  // metrics by name; null where not finite. Empty where the split has no such part
  std::string selected_by;          // what the best weights were chosen by: "valid/WA"
  double best_value = 0;            // its value for them; NaN where it is not finite, or nothing chose
  std::string model_note;           // to be printed wherever the result is; may be empty
};
// Throws Error(kBadData) when the file is missing or cannot be understood.
RunResult read_result(const std::string& run_directory);

// A table of metrics for people: one row per metric, a column per split, and the trivial floor of the last split.
struct ResultColumn {
  std::string title;
  metrics::Metrics metrics;
};
std::string results_table(const std::vector<ResultColumn>& columns);

// Confusion matrix with class names.
std::string confusion_table(const std::vector<std::string>& class_names,
                            const std::vector<std::vector<int64_t>>& confusion);

}  // namespace muster::training
