#pragma once

#include <string>
#include <vector>

#include "launcher/study/grid.h"
#include "launcher/study/results.h"
#include "launcher/study/table.h"

namespace muster::launcher {

// What is shown: the comparison and, where the study has folds, the folds.
std::vector<Table> study_tables(const StudySpec& spec, const StudyResults& results);

// Every number of them, unrounded, in columns variant, metric, fold ("pooled", "mean of folds" or a number), n, mean,
// std, and for "pooled" the comparison with the base.
std::string table_csv(const StudySpec& spec, const StudyResults& results);

// Every training's own: variant, seed, fold, split, metric, value.
std::string cells_csv(const StudyDirectory& directory);

}  // namespace muster::launcher
