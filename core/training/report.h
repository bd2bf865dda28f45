#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/training/results.h"

namespace muster::training {

// What a finished run tells a person.
struct Report {
  std::string name;
  uint64_t best_step = 0;
  uint64_t last_step = 0;
  bool stopped_early = false;
  uint64_t skipped_steps = 0;
  std::vector<ResultColumn> columns;  // per split: its result, then its floor
  std::vector<std::vector<int64_t>> confusion;
  std::vector<std::string> class_names;
  bool regression = false;
  std::string default_metric;         // decides whether anything was learnt
  std::string model_note;             // may be empty
  std::optional<double> temperature;  // of the best weights, where the model learns one
  std::string run_directory;
  nlohmann::json checkpoints;  // as Checkpointing::summary()
};

// Prints it to standard output, with a warning when the result is not above the trivial floor.
void print_report(const Report& report);

}  // namespace muster::training
