#include "core/training/report.h"

#include <cstdio>

#include "core/metrics/metrics.h"

namespace muster::training {
namespace {

void warn_if_nothing_learnt(const Report& report) {
  const ResultColumn &result = report.columns[report.columns.size() - 2], &floor = report.columns.back();
  const std::string& name = report.default_metric;
  const double value = metrics::metric_value(result.metrics, name),
               trivial = metrics::metric_value(floor.metrics, name);
  const bool above = metrics::higher_is_better(name) ? value > trivial : value < trivial;
  if (!above)
    std::printf(
        "NOT above the floor: %s on %s is %.4f, the trivial prediction's is %.4f. Nothing was learnt that carries "
        "over.\n",
        name.c_str(), result.title.c_str(), value, trivial);
}

}  // namespace

void print_report(const Report& report) {
  std::printf("\n%s: best weights of step %lu of %lu%s\n", report.name.c_str(), report.best_step, report.last_step,
              report.stopped_early ? " (stopped early)" : "");
  if (report.skipped_steps > 0) std::printf("%lu steps were skipped as non-finite\n", report.skipped_steps);
  if (!report.columns.empty()) std::printf("\n%s\n", results_table(report.columns).c_str());
  if (!report.confusion.empty()) std::printf("%s\n", confusion_table(report.class_names, report.confusion).c_str());
  if (!report.columns.empty()) {
    std::printf("floor: what predicting the training %s scores\n",
                report.regression ? "median for every sample" : "majority class for every sample");
    warn_if_nothing_learnt(report);
  }
  if (!report.model_note.empty()) std::printf("%s\n", report.model_note.c_str());
  if (report.temperature && *report.temperature <= 0)
    std::printf("the learnt temperature of the best weights is %g: as a divisor it turns every similarity round\n",
                *report.temperature);
  const int64_t saved = report.checkpoints["saved"], failed = report.checkpoints["failed"];
  if (saved + failed > 0)
    std::printf("checkpoints: %ld saved%s; training stood still for %.3f s, at most %.3f s at a time\n", saved,
                failed > 0 ? (", " + std::to_string(failed) + " FAILED (logs/checkpoints.jsonl)").c_str() : "",
                report.checkpoints["stall_seconds"].get<double>(),
                report.checkpoints["longest_stall_seconds"].get<double>());
  std::printf("run directory: %s\n", report.run_directory.c_str());
}

}  // namespace muster::training
