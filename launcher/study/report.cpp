#include "launcher/study/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/text.h"
#include "core/training/results.h"

namespace muster::launcher {
namespace {

std::string fixed(double value, const char* format = "%.4f") {
  if (!std::isfinite(value)) return "–";
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string exact(double value) { return std::isfinite(value) ? fixed(value, "%.17g") : ""; }

std::string spread_text(const Spread& one) {
  return one.n < 2 ? fixed(one.mean) : fixed(one.mean) + " ± " + fixed(one.std);
}

std::string p_text(double p) { return std::isfinite(p) && p < 0.0001 ? "< 0.0001" : fixed(p); }

// The mean over seeds of each fold.
Values fold_means(const VariantResults& results, size_t metric) {
  Values means;
  for (const auto& fold : results.folds[metric]) means.push_back(spread(fold).mean);
  return means;
}

std::string times(int count, const char* what) { return std::to_string(count) + " " + what + (count == 1 ? "" : "s"); }

std::string what_is_paired(const Study& study) {
  switch (study.pairs()) {
    case Study::FOLDS:
      return "fold (mean over seeds)";
    case Study::SEEDS_AND_FOLDS:
      return "seed and fold";
    default:
      return "seed";
  }
}

std::vector<std::string> warnings_of(const StudySpec& spec, const StudyResults& results) {
  std::vector<std::string> warnings;
  if (spec.study.select_on() == Study::TEST)
    warnings.push_back(
        "SELECTED ON THE TEST SPLIT: the best variant was chosen by the very numbers shown for it, which are therefore "
        "too good. Choose on the validation split (select_on: VALIDATION) to report them.");
  int trained = 0;
  for (const auto& one : results.variants) trained += one.trained;
  if (const int all = static_cast<int>(spec.cells.size()); trained < all)
    warnings.push_back("NOT COMPLETE: " + std::to_string(trained) + " of " + std::to_string(all) +
                       " trainings are done; compared is what both sides have.");
  return warnings;
}

Table comparison_table(const StudySpec& spec, const StudyResults& results) {
  const Study& study = spec.study;
  Table table;
  table.caption = study.name() + ": test split, " + times(static_cast<int>(study.seeds()), "seed") +
                  (results.folds ? ", test samples of all " + times(results.folds, "fold") + " pooled" : "") +
                  ", mean ± std over seeds";
  table.warnings = warnings_of(spec, results);
  const std::string& first = results.metrics[0];
  table.header = {"variant"};
  table.header.insert(table.header.end(), results.metrics.begin(), results.metrics.end());
  char interval[64];
  std::snprintf(interval, sizeof interval, " [%g %% interval]", 100 * (1 - study.significance_level()));
  for (const auto& name : {"Δ" + first + interval, std::string("p"), std::string("p (Holm)")})
    table.header.push_back(name);
  int tested = 0, most_pairs = 0;
  for (size_t variant = 0; variant < results.variants.size(); ++variant) {
    const auto& one = results.variants[variant];
    std::vector<std::string> row{spec.variants[variant].label() +
                                 (static_cast<int>(variant) == results.best ? " (best)" : "")};
    for (const auto& values : one.pooled) {
      const Spread all = spread(values);
      row.push_back(spread_text(all) +
                    (all.n > 0 && all.n < static_cast<int>(values.size()) ? " (n=" + std::to_string(all.n) + ")" : ""));
    }
    if (variant == 0) {
      row.insert(row.end(), {"", "", ""});
    } else {
      const Comparison& found = results.comparisons[0][variant - 1];
      const bool marked = found.p_holm < study.significance_level();
      row.push_back(std::isfinite(found.low) ? fixed(found.difference, "%+.4f") + " [" + fixed(found.low, "%+.4f") +
                                                   ", " + fixed(found.high, "%+.4f") + "]"
                                             : fixed(found.difference, "%+.4f"));
      row.push_back(p_text(found.p));
      row.push_back(p_text(found.p_holm) + (marked ? " *" : ""));
      if (std::isfinite(found.p)) tested += 1, most_pairs = std::max(most_pairs, found.n);
    }
    table.rows.push_back(std::move(row));
  }
  char level[32];
  std::snprintf(level, sizeof level, "%g", study.significance_level());
  table.notes.push_back("p: Wilcoxon signed-rank test against " + study.base_label() + ", two-sided, on " + first +
                        ", paired by " + what_is_paired(study) + "; Holm: corrected for " +
                        times(tested, "comparison") + "; * below " + level + ".");
  // What the corrected test can give, if every pair differs in the same direction.
  if (const double least_p = std::min(1.0, std::pow(2, 1 - most_pairs) * tested);
      tested > 0 && least_p >= study.significance_level())
    table.notes.push_back("With so few pairs p (Holm) cannot come below " + fixed(least_p) +
                          " whatever the numbers are (n pairs: 2 / 2^n for one comparison); more " +
                          (study.pairs() == Study::FOLDS ? "folds" : "seeds") + " are needed to show anything.");
  if (study.pairs() == Study::SEEDS_AND_FOLDS)
    table.notes.push_back(
        "Folds of one seed share most of their training samples, so these pairs are not independent and p is too "
        "small.");
  if (results.best >= 0)
    table.notes.push_back(
        "best: " + spec.variants[static_cast<size_t>(results.best)].label() + ", by " + first + " on the " +
        (study.select_on() == Study::TEST ? "TEST" : "validation") + " split" +
        (study.select_on() == Study::TEST
             ? ""
             : ", " + spread_text(spread(results.variants[static_cast<size_t>(results.best)].validation))) +
        ". Weights of every training: by its validation split.");
  table.notes.insert(table.notes.end(), results.model_notes.begin(), results.model_notes.end());
  return table;
}

Table fold_table(const StudySpec& spec, const StudyResults& results) {
  Table table;
  table.caption = spec.study.name() + ": " + results.metrics[0] + " of each fold's test split, mean ± std over seeds";
  table.warnings = warnings_of(spec, results);
  table.header = {"variant"};
  for (int fold = 0; fold < results.folds; ++fold) table.header.push_back("fold " + std::to_string(fold));
  table.header.push_back("mean of folds ± std over folds");
  for (size_t variant = 0; variant < results.variants.size(); ++variant) {
    const auto& one = results.variants[variant];
    std::vector<std::string> row{spec.variants[variant].label()};
    for (const auto& fold : one.folds[0]) row.push_back(spread_text(spread(fold)));
    row.push_back(spread_text(spread(fold_means(one, 0))));
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace

std::vector<Table> study_tables(const StudySpec& spec, const StudyResults& results) {
  std::vector<Table> tables{comparison_table(spec, results)};
  if (results.folds > 1) tables.push_back(fold_table(spec, results));
  return tables;
}

std::string table_csv(const StudySpec& spec, const StudyResults& results) {
  std::string csv;
  for (const auto& warning : warnings_of(spec, results)) csv += "# " + warning + "\n";
  csv += "variant,label,metric,fold,n,mean,std,pairs,difference,low,high,p,p_holm\n";
  for (size_t variant = 0; variant < results.variants.size(); ++variant)
    for (size_t metric = 0; metric < results.metrics.size(); ++metric) {
      const auto& one = results.variants[variant];
      const std::string start = csv_field(spec.variants[variant].name()) + "," +
                                csv_field(spec.variants[variant].label()) + "," + csv_field(results.metrics[metric]) +
                                ",";
      const auto row = [&](const std::string& fold, const Spread& values) {
        return start + fold + "," + std::to_string(values.n) + "," + exact(values.mean) + "," + exact(values.std) + ",";
      };
      csv += row("pooled", spread(one.pooled[metric]));
      if (variant == 0) {
        csv += ",,,,,\n";
      } else {
        const Comparison& found = results.comparisons[metric][variant - 1];
        csv += std::to_string(found.n) + "," + exact(found.difference) + "," + exact(found.low) + "," +
               exact(found.high) + "," + exact(found.p) + "," + exact(found.p_holm) + "\n";
      }
      if (results.folds < 2) continue;
      csv += row("mean of folds", spread(fold_means(one, metric))) + ",,,,,\n";
      for (int fold = 0; fold < results.folds; ++fold)
        csv += row(std::to_string(fold), spread(one.folds[metric][static_cast<size_t>(fold)])) + ",,,,,\n";
    }
  return csv;
}

std::string cells_csv(const StudyDirectory& directory) {
  std::string csv = "variant,seed,fold,split,metric,value\n";
  const StudySpec& spec = directory.spec();
  for (const auto& cell : spec.cells) {
    if (!directory.is_trained(cell)) continue;
    const training::RunResult result = directory.result(cell);
    const std::string start = spec.variants[static_cast<size_t>(cell.variant)].name() + "," +
                              std::to_string(cell.seed) + "," + (cell.fold < 0 ? "" : std::to_string(cell.fold)) + ",";
    for (const auto& [split, metrics] : {std::pair{"validation", &result.validation}, {"test", &result.test}})
      for (const auto& [name, value] : metrics->items())
        csv += start + split + "," + csv_field(name) + "," + (value.is_number() ? exact(value) : "") + "\n";
  }
  return csv;
}

}  // namespace muster::launcher
