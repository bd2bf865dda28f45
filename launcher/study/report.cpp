#include "launcher/study/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "base/text.h"
#include "core/run/results.h"

namespace muster::launcher {
namespace {

constexpr size_t kTextColumns = 6;  // at most, in a terminal

std::string fixed(double value) { return std::isfinite(value) ? fmt::format("{:.4f}", value) : "–"; }
std::string with_sign(double value) { return std::isfinite(value) ? fmt::format("{:+.4f}", value) : "–"; }
std::string exact(double value) { return std::isfinite(value) ? fmt::format("{:.17g}", value) : ""; }

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

// Test samples, e.g. "601 (85 dropped)"; with another number for each seed "598–601".
std::string samples_text(const VariantResults& results) {
  Values counts = pooled_samples(results);
  counts.erase(std::remove_if(counts.begin(), counts.end(), [](double count) { return !std::isfinite(count); }),
               counts.end());
  if (counts.empty()) return "–";
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  std::string text = fmt::format("{:.0f}", *least);
  if (*most > *least) text += fmt::format("–{:.0f}", *most);
  return text + (results.dropped > 0 ? fmt::format(" ({} dropped)", results.dropped) : "");
}

std::string trivial_prediction(const StudyResults& results) {
  if (metrics::is_metric_of(results.metrics[0], data::Task::kRegression)) return "training median";
  return metrics::is_metric_of(results.metrics[0], data::Task::kMultilabel) ? "majority of each class"
                                                                            : "majority class";
}

std::string trivial_label(const StudyResults& results) { return "trivial: " + trivial_prediction(results); }

// Whether the best variant beats the trivial prediction, by every metric that is defined for both.
struct AgainstTrivial {
  std::vector<std::string> better, others;
  std::string first;  // the first of the others, with both numbers
};
AgainstTrivial against_trivial(const StudySpec& spec, const StudyResults& results) {
  AgainstTrivial found;
  if (results.best < 0 || results.trivial.trained == 0) return found;
  const auto best = static_cast<size_t>(results.best);
  for (size_t metric = 0; metric < results.metrics.size(); ++metric) {
    const std::string& name = results.metrics[metric];
    const double trivial = spread(results.trivial.pooled[metric]).mean;
    const double value = spread(results.variants[best].pooled[metric]).mean;
    if (!std::isfinite(trivial)) continue;
    if (metrics::higher_is_better(name) ? value > trivial : value < trivial) {
      found.better.push_back(name);
      continue;
    }
    if (found.others.empty())
      found.first = fmt::format("{} of {} on the test split is {}, that of the {} {}.", name,
                                spec.variants[best].label(), fixed(value), trivial_prediction(results), fixed(trivial));
    found.others.push_back(name);
  }
  return found;
}

// By the first metric that is defined for the trivial prediction; empty: the best variant beats it, or it is not known.
std::string not_better_than_trivial(const StudySpec& spec, const StudyResults& results) {
  const AgainstTrivial found = against_trivial(spec, results);
  const auto place = [&](const std::string& name) {
    return std::find(results.metrics.begin(), results.metrics.end(), name);
  };
  if (found.others.empty() || (!found.better.empty() && place(found.better[0]) < place(found.others[0]))) return "";
  return "NOT BETTER THAN TRIVIAL: " + found.first +
         (found.better.empty() ? " Nothing was learnt that generalises."
                               : fmt::format(" Better by: {}.", join(found.better)));
}

std::string different_samples(const StudySpec& spec, const StudyResults& results) {
  const Values own = pooled_samples(results.variants[0]);
  std::vector<std::string> others;
  for (size_t variant = 1; variant < results.variants.size(); ++variant) {
    const Values counts = pooled_samples(results.variants[variant]);
    for (size_t seed = 0; seed < counts.size(); ++seed)
      if (std::isfinite(counts[seed]) && std::isfinite(own[seed]) && counts[seed] != own[seed]) {
        others.push_back(fmt::format("{} {}", spec.variants[variant].label(), samples_text(results.variants[variant])));
        break;
      }
  }
  if (others.empty()) return "";
  return fmt::format(
      "DIFFERENT SAMPLES: the test samples of {} are {}, of {}. These numbers are not of the same samples{}.",
      spec.study.base_label(), samples_text(results.variants[0]), join(others),
      results.trivial.trained > 0 ? ", and the trivial baseline is that of " + spec.study.base_label() : "");
}

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
  if (spec.study.select_on() == Study::TEST && spec.variants.size() > 1)
    warnings.push_back(
        "SELECTED ON THE TEST SPLIT: the best variant was chosen by the very numbers shown for it, which are therefore "
        "too good. Choose on the validation split (select_on: VALIDATION) to report them.");
  int trained = 0;
  for (const auto& one : results.variants) trained += one.trained;
  if (const int all = static_cast<int>(spec.cells.size()); trained < all)
    warnings.push_back(fmt::format("NOT COMPLETE: {} of {} runs are done{}.", trained, all,
                                   spec.variants.size() > 1 ? "; compared is what both sides have" : ""));
  for (const auto& warning : {not_better_than_trivial(spec, results), different_samples(spec, results)})
    if (!warning.empty()) warnings.push_back(warning);
  return warnings;
}

// A label, and mean ± std of each metric.
std::vector<std::string> scores_row(const std::string& label, const VariantResults& results) {
  std::vector<std::string> row{label};
  for (const auto& values : results.pooled) {
    const Spread all = spread(values);
    row.push_back(spread_text(all) +
                  (all.n > 0 && all.n < static_cast<int>(values.size()) ? fmt::format(" (n={})", all.n) : ""));
  }
  row.push_back(samples_text(results));
  return row;
}

// What the comparisons of a table mean.
std::vector<std::string> notes_on_p(const Study& study, const StudyResults& results) {
  int tested = 0, most_pairs = 0;
  for (const Comparison& found : results.comparisons[0])
    if (std::isfinite(found.p)) tested += 1, most_pairs = std::max(most_pairs, found.n);
  if (tested == 0) return {};  // one pair, or none
  std::vector<std::string> notes{
      fmt::format("p: Wilcoxon signed-rank test against {}, two-sided, on {}, paired by {}; Holm: corrected for {}; * "
                  "below {:g}.",
                  study.base_label(), results.metrics[0], what_is_paired(study), plural(tested, "comparison"),
                  study.significance_level())};
  // What the corrected test can give, if every pair differs in the same direction.
  if (const double least_p = std::min(1.0, std::pow(2, 1 - most_pairs) * tested);
      tested > 0 && least_p >= study.significance_level())
    notes.push_back(
        fmt::format("With so few pairs p (Holm) cannot come below {} whatever the numbers are (n "
                    "pairs: 2 / 2^n for one comparison); more {} are needed to show anything.",
                    fixed(least_p), study.pairs() == Study::FOLDS ? "folds" : "seeds"));
  if (study.pairs() == Study::SEEDS_AND_FOLDS)
    notes.push_back(
        "Folds of one seed share most of their training samples, so these pairs are not independent and p is too "
        "small.");
  return notes;
}

Table comparison_table(const StudySpec& spec, const StudyResults& results) {
  const Study& study = spec.study;
  const bool compares = spec.variants.size() > 1;
  Table table;
  table.caption =
      fmt::format("{}: test split, {}{}{}", study.name(), plural(study.seeds(), "seed"),
                  results.folds ? fmt::format(", test samples of all {} pooled", plural(results.folds, "fold")) : "",
                  study.seeds() > 1 ? ", mean ± std over seeds" : "");
  table.warnings = warnings_of(spec, results);
  const std::string& first = results.metrics[0];
  table.header = {"variant"};
  table.header.insert(table.header.end(), results.metrics.begin(), results.metrics.end());
  table.header.push_back("samples");
  const double confidence = 100 * (1 - study.significance_level());
  if (compares)
    table.header.insert(table.header.end(), {fmt::format("Δ{} [{:g} % interval]", first, confidence), "p", "p (Holm)"});
  for (size_t variant = 0; variant < results.variants.size(); ++variant) {
    const bool is_best = compares && static_cast<int>(variant) == results.best;
    auto row = scores_row(spec.variants[variant].label() + (is_best ? " (best)" : ""), results.variants[variant]);
    if (variant > 0) {
      const Comparison& found = results.comparisons[0][variant - 1];
      const bool marked = found.p_holm < study.significance_level();
      const std::string interval =
          std::isfinite(found.low) ? fmt::format(" [{}, {}]", with_sign(found.low), with_sign(found.high)) : "";
      row.insert(row.end(), {with_sign(found.difference) + interval, p_text(found.p),
                             p_text(found.p_holm) + (marked ? " *" : "")});
    }
    row.resize(table.header.size());
    table.rows.push_back(std::move(row));
  }
  if (results.trivial.trained > 0) {
    table.rows.push_back(scores_row(trivial_label(results), results.trivial));
    table.rows.back().resize(table.header.size());
    table.notes.push_back(fmt::format("trivial: what predicting the {} for every test sample of {} scores.",
                                      trivial_prediction(results), study.base_label()));
  }
  if (const auto found = against_trivial(spec, results); !found.others.empty() && !found.better.empty())
    table.notes.push_back(fmt::format("Not better than trivial by: {}.", join(found.others)));
  if (compares) {
    const auto notes = notes_on_p(study, results);
    table.notes.insert(table.notes.end(), notes.begin(), notes.end());
  }
  if (results.best >= 0) {
    const auto best = static_cast<size_t>(results.best);
    const std::string named =
        fmt::format("best: {}, by {} on the {}. ", spec.variants[best].label(), first,
                    study.select_on() == Study::TEST
                        ? "TEST split"
                        : "validation split, " + spread_text(spread(results.variants[best].validation)));
    table.notes.push_back((compares ? named : "") + "Weights of every run: by its validation split.");
  }
  table.notes.insert(table.notes.end(), results.model_notes.begin(), results.model_notes.end());
  return table;
}

Table fold_table(const StudySpec& spec, const StudyResults& results) {
  Table table;
  table.caption =
      fmt::format("{}: {} of each fold's test split, mean ± std over seeds", spec.study.name(), results.metrics[0]);
  table.warnings = warnings_of(spec, results);
  table.header = {"variant"};
  for (int fold = 0; fold < results.folds; ++fold) table.header.push_back(fmt::format("fold {}", fold));
  table.header.push_back("mean of folds ± std over folds");
  const auto add = [&](const std::string& label, const VariantResults& one) {
    std::vector<std::string> row{label};
    for (const auto& fold : one.folds[0]) row.push_back(spread_text(spread(fold)));
    row.push_back(spread_text(spread(fold_means(one, 0))));
    table.rows.push_back(std::move(row));
  };
  for (size_t variant = 0; variant < results.variants.size(); ++variant)
    add(spec.variants[variant].label(), results.variants[variant]);
  if (results.trivial.trained > 0) add(trivial_label(results), results.trivial);
  return table;
}

size_t width_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));  // characters, not bytes
}

using Replacements = std::map<std::string, std::string>;
// "a A b B": a becomes A, b becomes B.
Replacements replacements_of(const std::string& words) {
  Replacements all;
  std::istringstream text(words);
  for (std::string from, to; text >> from >> to;) all[from] = to;
  return all;
}
const Replacements kMarkdown = replacements_of(R"(| \|)");
const Replacements kLatex =
    replacements_of(R"(\ \textbackslash{} ~ \textasciitilde{} ^ \textasciicircum{} _ \_ % \% & \&
    # \# $ \$ { \{ } \} ± $\pm$ Δ $\Delta$ ≥ $\ge$ − $-$ < $<$ > $>$)");

std::string escaped(const std::string& text, const Replacements& replacements) {
  std::string result;
  for (size_t i = 0, size; i < text.size(); i += size) {
    for (size = 1; i + size < text.size() && (text[i + size] & 0xC0) == 0x80;) ++size;
    const std::string character = text.substr(i, size);
    const auto found = replacements.find(character);
    result += found == replacements.end() ? character : found->second;
  }
  return result;
}

// The cells of a row, escaped.
std::string row_text(const std::vector<std::string>& cells, const Replacements& replacements, const char* between) {
  std::string text;
  for (size_t i = 0; i < cells.size(); ++i) text += (i ? between : "") + escaped(cells[i], replacements);
  return text;
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
  csv += "variant,label,metric,fold,n,mean,std,pairs,difference,low,high,p,p_holm,samples,dropped\n";
  const auto add = [&](const std::string& name, const std::string& label, const VariantResults& one, size_t metric,
                       const Comparison* found) {
    const auto add_row = [&](const std::string& fold, const Spread& values, const std::string& compared,
                             const Values& samples) {
      csv += fmt::format("{},{},{},{},{},{},{},{},{},{}\n", csv_field(name), csv_field(label),
                         csv_field(results.metrics[metric]), fold, values.n, exact(values.mean), exact(values.std),
                         compared, exact(spread(samples).mean), one.dropped < 0 ? "" : fmt::to_string(one.dropped));
    };
    add_row("pooled", spread(one.pooled[metric]),
            found ? fmt::format("{},{},{},{},{},{}", found->n, exact(found->difference), exact(found->low),
                                exact(found->high), exact(found->p), exact(found->p_holm))
                  : ",,,,,",
            pooled_samples(one));
    if (results.folds < 2) return;
    add_row("mean of folds", spread(fold_means(one, metric)), ",,,,,", {});
    for (size_t fold = 0; fold < one.samples.size(); ++fold)
      add_row(fmt::to_string(fold), spread(one.folds[metric][fold]), ",,,,,", one.samples[fold]);
  };
  for (size_t variant = 0; variant < results.variants.size(); ++variant)
    for (size_t metric = 0; metric < results.metrics.size(); ++metric)
      add(spec.variants[variant].name(), spec.variants[variant].label(), results.variants[variant], metric,
          variant ? &results.comparisons[metric][variant - 1] : nullptr);
  for (size_t metric = 0; metric < results.metrics.size() && results.trivial.trained > 0; ++metric)
    add("trivial baseline", trivial_label(results), results.trivial, metric, nullptr);  // the blank: no variant's name
  return csv;
}

std::string cells_csv(const StudyDirectory& directory) {
  std::string csv = "variant,seed,fold,split,metric,value\n";
  const StudySpec& spec = directory.spec();
  for (const auto& cell : spec.cells) {
    if (!directory.is_trained(cell)) continue;
    const run::RunResult result = directory.result(cell);
    for (const auto& [split, metrics] : {std::pair{"validation", &result.validation}, {"test", &result.test}})
      for (const auto& [name, value] : metrics->items())
        csv += fmt::format("{},{},{},{},{},{}\n", spec.variants[static_cast<size_t>(cell.variant)].name(), cell.seed,
                           cell.fold < 0 ? "" : fmt::to_string(cell.fold), split, csv_field(name),
                           value.is_number() ? exact(value) : "");
  }
  return csv;
}

std::string as_text(const Table& table) {
  std::vector<size_t> widths;
  for (const auto& name : table.header) widths.push_back(width_of(name));
  for (const auto& row : table.rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  std::string text;
  for (const auto& warning : table.warnings) text += "!!! " + warning + "\n";
  text += table.caption + "\n";
  // Blocks of about as many columns each, after the first column, which every block has.
  const size_t columns = table.header.size() - 1, blocks = (columns + kTextColumns - 2) / (kTextColumns - 1);
  for (size_t block = 0; block < blocks; ++block) {
    const size_t begin = 1 + block * columns / blocks, end = 1 + (block + 1) * columns / blocks;
    const auto line = [&](const std::vector<std::string>& row) {
      std::string cells = " ";
      for (size_t i = 0; i < end; i = i == 0 ? begin : i + 1)
        cells += " " + row[i] + std::string(widths[i] - width_of(row[i]) + 1, ' ');
      cells.erase(cells.find_last_not_of(' ') + 1);
      return cells + "\n";
    };
    if (block > 0) text += "\n";
    text += line(table.header);
    for (const auto& row : table.rows) text += line(row);
  }
  for (const auto& note : table.notes) text += note + "\n";
  return text;
}

std::string as_markdown(const Table& table) {
  std::string text;
  for (const auto& warning : table.warnings) text += fmt::format("> **WARNING: {}**\n\n", warning);
  text += table.caption + "\n\n";
  const auto line = [&](const auto& row) { text += fmt::format("| {} |\n", row_text(row, kMarkdown, " | ")); };
  line(table.header);
  for (size_t i = 0; i < table.header.size(); ++i) text += "|---";
  text += "|\n";
  for (const auto& row : table.rows) line(row);
  for (const auto& note : table.notes) text += fmt::format("\n{}\n", note);
  return text;
}

std::string as_latex(const Table& table) {
  std::string text = "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n";
  for (const auto& warning : table.warnings)
    text += fmt::format("\\textbf{{WARNING: {}}}\\\\\n", escaped(warning, kLatex));
  text += fmt::format("\\caption{{{}}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n", escaped(table.caption, kLatex),
                      std::string(table.header.size() - 1, 'r'));
  const auto line = [&](const auto& row) { text += row_text(row, kLatex, " & ") + " \\\\\n"; };
  line(table.header);
  text += "\\midrule\n";
  for (const auto& row : table.rows) line(row);
  text += "\\bottomrule\n\\end{tabular}\n";
  for (const auto& note : table.notes) text += fmt::format("\\par\\footnotesize {}\n", escaped(note, kLatex));
  return text + "\\end{table}\n";
}

}  // namespace muster::launcher
