#include "launcher/robustness/robustness.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "base/process.h"
#include "base/text.h"
#include "core/metrics/metrics.h"
#include "core/run/results.h"
#include "launcher/study/report.h"
#include "launcher/work/python.h"

namespace muster::embedded {
extern const std::string_view robustness_plot_py;
}

namespace muster::launcher {
namespace {

using nlohmann::json;
using training::PerturbationCurve;
using training::PerturbationKind;
using training::PerturbedScores;

constexpr double kMostNoise = 1e6;
constexpr size_t kMostRates = 1000;  // of one curve

// START + i STEP in decimal, as a person would write it: 0:0.1:1 has the very number 0.3.
double tidy(double value) { return *parse_real(fmt::format("{:.12g}", value)); }

std::vector<std::string> parts_of(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text)
    if (c == separator)
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

// Nothing: it is none of the forms.
std::optional<std::vector<double>> rates_in(const std::string& text) {
  const bool range = text.find(':') != std::string::npos;
  std::vector<double> numbers;
  for (const auto& part : parts_of(text, range ? ':' : ',')) {
    const auto number = parse_real(part);
    if (!number || !std::isfinite(*number)) return std::nullopt;
    numbers.push_back(*number);
  }
  std::vector<double> rates = numbers;
  if (range) {
    if (numbers.size() != 3 || !(numbers[1] > 0) || numbers[2] < numbers[0]) return std::nullopt;
    const double steps = std::floor((numbers[2] - numbers[0]) / numbers[1] + 1e-9);
    if (steps >= static_cast<double>(kMostRates)) return std::nullopt;
    rates.clear();
    for (int i = 0; i <= static_cast<int>(steps); ++i) rates.push_back(tidy(numbers[0] + i * numbers[1]));
  }
  std::sort(rates.begin(), rates.end());
  rates.erase(std::unique(rates.begin(), rates.end()), rates.end());
  if (rates.size() > kMostRates) return std::nullopt;
  return rates;
}

// The scores of a curve at one rate, seed by seed.
struct RatePoint {
  const PerturbationCurve& curve;
  double rate;
  std::vector<const PerturbedScores*> seeds;

  Spread metric(size_t place) const {
    Values values;
    for (const auto* scores : seeds) values.push_back(scores->metrics[place].second);
    return spread(values);
  }
  // "601", or with another number for each seed "598–601".
  std::string count(int64_t PerturbedScores::*member) const {
    std::set<int64_t> counts;
    for (const auto* scores : seeds) counts.insert(scores->*member);
    return *counts.begin() == *counts.rbegin() ? fmt::format("{}", *counts.begin())
                                               : fmt::format("{}–{}", *counts.begin(), *counts.rbegin());
  }
};

std::vector<RatePoint> points_of(const std::vector<PerturbationCurve>& curves,
                                 const std::vector<PerturbedScores>& scores) {
  std::vector<RatePoint> points;
  for (const auto& one : scores) {
    if (one.seed == 1) points.push_back({curves[one.curve], one.rate, {}});
    points.back().seeds.push_back(&one);
  }
  return points;
}

std::vector<std::string> shown_names(const std::vector<PerturbedScores>& scores) {
  std::vector<metrics::Metrics> all;
  for (const auto& one : scores) all.push_back(one.metrics);
  return metrics::shown_names(all);
}

std::string score_text(const Spread& value) {
  if (value.n == 0) return "undefined";
  const std::string mean = fmt::format("{:.4f}", value.mean);
  return value.n < 2 ? mean : mean + fmt::format(" ± {:.4f}", value.std);
}

}  // namespace

std::vector<PerturbationCurve> perturbation_curves(const std::vector<std::string>& drops,
                                                   const std::vector<std::string>& noises) {
  std::vector<PerturbationCurve> curves;
  std::vector<std::string> problems;
  for (const auto kind : {PerturbationKind::kDrop, PerturbationKind::kNoise}) {
    const bool drop = kind == PerturbationKind::kDrop;
    for (const auto& text : drop ? drops : noises) {
      const auto refuse = [&](const std::string& what) {
        problems.push_back(fmt::format("--{} {}: {}", name_of(kind), in_quotes(text), what));
      };
      const size_t equals = text.rfind('=');
      const auto rates = equals == std::string::npos ? std::nullopt : rates_in(text.substr(equals + 1));
      const std::string modality = text.substr(0, equals);
      if (!rates || modality.empty()) {
        refuse(
            fmt::format("write MODALITY=START:STEP:STOP, MODALITY=RATE,RATE,... or MODALITY=RATE, with at most {} "
                        "rates: audio=0:0.1:1, audio=0,0.5 or audio=0.5",
                        kMostRates));
        continue;
      }
      if (rates->front() < 0 || rates->back() > (drop ? 1 : kMostNoise))
        refuse(drop ? "a share of the samples is between 0 and 1"
                    : fmt::format("noise is between 0 and {:g} standard deviations", kMostNoise));
      if (std::any_of(curves.begin(), curves.end(),
                      [&](const auto& curve) { return curve.kind == kind && curve.modality == modality; }))
        refuse("this modality has rates already; give all of them at once, with commas between them");
      curves.push_back({kind, modality, *rates});
    }
  }
  if (!problems.empty()) throw Error(ExitCode::kUsage, join(problems, "\n"));
  return curves;
}

std::string robustness_tables(const std::vector<PerturbationCurve>& curves,
                              const std::vector<PerturbedScores>& scores) {
  std::string text;
  const auto points = points_of(curves, scores);
  const auto names = shown_names(scores);
  const auto is_shown = [&](const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto& curve : curves) {
    const bool drop = curve.kind == PerturbationKind::kDrop;
    Table table;
    table.caption = drop ? fmt::format("{} missing in a share of the samples", curve.modality)
                         : fmt::format("noise on {}, in standard deviations (of a waveform: in each recording's RMS)",
                                       curve.modality);
    bool leaves_out = false;
    for (const auto& point : points) {
      if (&point.curve != &curve) continue;
      const auto& metrics = point.seeds[0]->metrics;
      if (table.header.empty()) {
        if (point.seeds.size() > 1)
          table.caption += fmt::format(" (mean ± standard deviation of {} seeds)", point.seeds.size());
        table.header = {drop ? "share" : "noise", "samples"};
        for (size_t metric = 0; metric < metrics.size(); ++metric)
          if (is_shown(metrics[metric].first)) table.header.push_back(metrics[metric].first);
      }
      std::vector<std::string> row{fmt::format("{:.12g}", point.rate), point.count(&PerturbedScores::samples)};
      if (const std::string out = point.count(&PerturbedScores::left_out); out != "0") {
        row[1] += fmt::format(" ({} left out)", out);
        leaves_out = true;
      }
      for (size_t metric = 0; metric < metrics.size(); ++metric)
        if (is_shown(metrics[metric].first)) row.push_back(score_text(point.metric(metric)));
      table.rows.push_back(std::move(row));
    }
    if (leaves_out)
      table.notes.push_back(
          fmt::format("left out: samples that have no other modality than {}, and lose it", curve.modality));
    text += (text.empty() ? "" : "\n") + as_text(table);
  }
  return text;
}

std::string robustness_csv(const std::vector<PerturbationCurve>& curves, const std::vector<PerturbedScores>& scores) {
  const auto number = [](double value) { return std::isfinite(value) ? fmt::format("{:.17g}", value) : ""; };
  std::string csv = "perturbation,modality,rate,seed,samples,left_out,loss";
  for (const auto& metric : scores[0].metrics) csv += "," + csv_field(metric.first);
  csv += "\n";
  for (const auto& one : scores) {
    const auto& curve = curves[one.curve];
    csv += fmt::format("{},{},{:.12g},{},{},{},{}", name_of(curve.kind), csv_field(curve.modality), one.rate, one.seed,
                       one.samples, one.left_out, number(one.loss));
    for (const auto& metric : one.metrics) csv += "," + number(metric.second);
    csv += "\n";
  }
  return csv;
}

json robustness_json(const std::vector<PerturbationCurve>& curves, const std::vector<PerturbedScores>& scores) {
  json all = json::array();
  for (const auto& point : points_of(curves, scores)) {
    json one = {{"perturbation", name_of(point.curve.kind)},
                {"modality", point.curve.modality},
                {"rate", point.rate},
                {"mean", json::object()},
                {"std", json::object()},
                {"seeds", json::array()}};
    for (size_t metric = 0; metric < point.seeds[0]->metrics.size(); ++metric) {
      const auto& name = point.seeds[0]->metrics[metric].first;
      const Spread value = point.metric(metric);
      one["mean"][name] = number_or_null(value.mean);
      one["std"][name] = number_or_null(value.std);
    }
    for (const auto* scores_of_seed : point.seeds)
      one["seeds"].push_back({{"seed", scores_of_seed->seed},
                              {"samples", scores_of_seed->samples},
                              {"left_out", scores_of_seed->left_out},
                              {"loss", number_or_null(scores_of_seed->loss)},
                              {"metrics", run::to_json(scores_of_seed->metrics)}});
    all.push_back(std::move(one));
  }
  return all;
}

std::string robustness_plot(const std::vector<PerturbationCurve>& curves, const std::vector<PerturbedScores>& scores) {
  json request = {{"metrics", shown_names(scores)}, {"curves", json::array()}};
  const json points = robustness_json(curves, scores);
  for (const auto& curve : curves) {
    json drawn = {{"kind", name_of(curve.kind)}, {"modality", curve.modality}, {"rates", curve.rates}};
    for (const auto& point : points)
      if (point["perturbation"] == name_of(curve.kind) && point["modality"] == curve.modality)
        for (const char* part : {"mean", "std"})
          for (const auto& [name, value] : point[part].items()) drawn[part][name].push_back(value);
    request["curves"].push_back(std::move(drawn));
  }
  ProcessOptions options;
  options.input = ProcessOptions::Input::kBytes;
  options.input_bytes = json_text(request);
  const auto command = python_command({embedded::robustness_plot_py});
  const ProcessResult result = run_process(command, options);
  if (result.code != 0 || result.output.rfind("<?xml", 0) != 0)
    throw Error(ExitCode::kBadConfig, fmt::format("the plot needs Matplotlib, and {} could not draw it ({}):\n{}",
                                                  command[0], kPythonHint, result.answer()));
  return result.output;
}

}  // namespace muster::launcher
