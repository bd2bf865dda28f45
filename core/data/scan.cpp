#include "core/data/scan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "base/text.h"

namespace muster::data {
namespace {

constexpr int64_t block_elements = int64_t{1} << 20;  // 4 MiB of float32

void keep_first(std::vector<BadValue>& list) {
  std::sort(list.begin(), list.end(), [](const BadValue& a, const BadValue& b) {
    return std::tie(a.sample, a.modality, a.frame, a.column) < std::tie(b.sample, b.modality, b.frame, b.column);
  });
  if (list.size() > ScanReport::max_listed) list.resize(ScanReport::max_listed);
}

// Adding up x * 0 is 0 for finite x and NaN otherwise: a test of a whole block without a branch per value.
bool all_finite(const float* values, int64_t count) {
  float lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += values[i + lane] * 0.0f;
  }
  float sum = 0;
  for (; i < count; ++i) sum += values[i] * 0.0f;
  for (const float lane : lanes) sum += lane;
  return sum == 0.0f;
}

bool is_id(float value, int64_t column, const IdLimits& limits) {
  return value >= 0 && value < static_cast<float>(column == 0 ? limits.first : limits.second);
}

bool all_ids(const float* values, int64_t count, int64_t dim, const IdLimits& limits) {
  for (int64_t i = 0; i < count; ++i)
    if (!is_id(values[i], i % dim, limits)) return false;
  return true;
}

// Scans rows [first, first + count) and adds what it finds; `found` is how many of this modality are listed already.
void scan_block(const DatasetIndex& index, const Modality& modality, const float* values, int64_t first, int64_t count,
                const IdLimits& limits, int& found, ScanReport& report) {
  const int64_t dim = modality.dim;
  const bool tokens = modality.kind == ModalityKind::kTokens;
  report.values += count * dim;
  if (tokens) {
    int64_t& largest = report.largest_id.emplace(modality.name, -1).first->second;
    for (int64_t row = 0; row < count; ++row)
      if (is_id(values[row * dim], 0, limits)) largest = std::max(largest, static_cast<int64_t>(values[row * dim]));
  }
  if (tokens ? all_ids(values, count * dim, dim, limits) : all_finite(values, count * dim)) return;
  for (int64_t i = 0; i < count * dim; ++i) {
    if (tokens ? is_id(values[i], i % dim, limits) : std::isfinite(values[i])) continue;
    ++(tokens ? report.bad_ids : report.non_finite);
    report.in_waveform = report.in_waveform || modality.kind == ModalityKind::kWaveform;
    if (found++ >= ScanReport::max_listed) continue;
    const int64_t row = first + i / dim;
    // The last sample that starts at or before the row: empty ranges before it start there too.
    const auto after = std::upper_bound(modality.offsets.begin(), modality.offsets.end(), row);
    const int64_t sample = after - modality.offsets.begin() - 1;
    report.first.push_back(
        {modality.name, sample, index.ids[sample], row - modality.offsets[sample], i % dim, values[i]});
  }
}

}  // namespace

void ScanReport::merge(const ScanReport& other) {
  values += other.values;
  non_finite += other.non_finite;
  in_waveform = in_waveform || other.in_waveform;
  bad_ids += other.bad_ids;
  for (const auto& [name, id] : other.largest_id) {
    int64_t& largest = largest_id.emplace(name, -1).first->second;
    largest = std::max(largest, id);
  }
  first.insert(first.end(), other.first.begin(), other.first.end());
  keep_first(first);
}

ScanReport scan_values(const Dataset& dataset, const std::vector<int64_t>& modalities, int64_t first_sample,
                       int64_t end_sample, const std::function<void(int64_t done, int64_t total)>& progress,
                       const std::vector<IdLimits>& limits) {
  const DatasetIndex& index = dataset.index();
  ScanReport report;
  std::vector<float> buffer;
  // Samples are taken in runs so that all modalities advance together: that is what progress counts.
  constexpr int64_t run = 256;
  std::vector<int> found(modalities.size(), 0);
  for (int64_t start = first_sample; start < end_sample; start += run) {
    const int64_t end = std::min(start + run, end_sample);
    for (size_t m = 0; m < modalities.size(); ++m) {
      const Modality& modality = index.modalities.at(static_cast<size_t>(modalities[m]));
      if (!limits.empty() && limits[m].first < id_limit) report.vocabulary = limits[m].first;
      const int64_t rows = std::max<int64_t>(1, block_elements / modality.dim);
      for (int64_t row = modality.offsets[start]; row < modality.offsets[end]; row += rows) {
        const int64_t count = std::min(rows, modality.offsets[end] - row);
        buffer.resize(static_cast<size_t>(count * modality.dim));
        dataset.read_frames(modalities[m], row, count, buffer.data());
        scan_block(index, modality, buffer.data(), row, count,
                   limits.empty() ? IdLimits{id_limit, id_limit} : limits[m], found[m], report);
      }
    }
    if (progress) progress(end - first_sample, end_sample - first_sample);
  }
  keep_first(report.first);
  return report;
}

std::string describe(const ScanReport& report) {
  if (report.is_good()) return "";
  const auto value_name = [](float value) {
    if (std::isfinite(value)) return fmt::format("{:.0f}", value);
    return std::string(std::isnan(value) ? "NaN" : value > 0 ? "+infinity" : "-infinity");
  };
  const auto are = [](int64_t count, const char* thing) {
    return plural(count, thing) + (count == 1 ? " is" : " are");
  };
  std::string text;
  if (report.non_finite > 0)
    text = fmt::format("{} not finite. {} must be finite: replace them in the file (importers write 0).",
                       are(report.non_finite, report.in_waveform ? "value" : "feature"),
                       report.in_waveform ? "Features and waveforms" : "Features");
  if (report.bad_ids > 0)
    text += fmt::format("{}{} no ids of tokens{}.", text.empty() ? "" : "\n", are(report.bad_ids, "value"),
                        report.vocabulary > 0
                            ? fmt::format(" of the encoder's vocabulary, which ends at {}", report.vocabulary - 1)
                            : fmt::format(", which are whole numbers from 0 to {}", id_limit - 1));
  for (const BadValue& place : report.first)
    text += fmt::format("\n  sample {}, {}, frame {}, column {}: {}", in_quotes(place.id), place.modality, place.frame,
                        place.column, value_name(place.value));
  const int64_t more = report.non_finite + report.bad_ids - static_cast<int64_t>(report.first.size());
  if (more > 0) text += fmt::format("\n  and {} more", more);
  return text;
}

}  // namespace muster::data
