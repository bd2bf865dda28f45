#pragma once

#include <string>
#include <vector>

#include "launcher/study/grid.h"
#include "launcher/study/results.h"

namespace muster::launcher {

// A table for people, in whatever form: cells are plain UTF-8 text.
struct Table {
  std::string caption;
  std::vector<std::string> warnings;  // above it, and loud
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // as wide as the header
  std::vector<std::string> notes;              // below it
};

std::string as_text(const Table& table);
std::string as_markdown(const Table& table);
// A `table` environment with booktabs' rules.
std::string as_latex(const Table& table);

// What is shown: the comparison and, where the study has folds, the folds.
std::vector<Table> study_tables(const StudySpec& spec, const StudyResults& results);

// Every number of them, unrounded, in columns variant, metric, fold ("pooled", "mean of folds" or a number), n, mean,
// std, for "pooled" the comparison with the base, then the test samples and how many of the dataset were dropped. The
// variant "trivial baseline" comes last.
std::string table_csv(const StudySpec& spec, const StudyResults& results);

// Every run's own: variant, seed, fold, split, metric, value.
std::string cells_csv(const StudyDirectory& directory);

}  // namespace muster::launcher
