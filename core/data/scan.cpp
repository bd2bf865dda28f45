#include "core/data/scan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
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

// The largest magnitude of those that are finite; 0 without any.
float magnitude_of(const float* values, int64_t count) {
  float lanes[8] = {};
  const auto look = [](float value, float& largest) {
    const float magnitude = std::fabs(value);
    largest = magnitude > largest && magnitude <= std::numeric_limits<float>::max() ? magnitude : largest;
  };
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) look(values[i + lane], lanes[lane]);
  for (; i < count; ++i) look(values[i], lanes[0]);
  return *std::max_element(std::begin(lanes), std::end(lanes));
}

// The last sample that starts at or before the row: empty ranges before it start there too.
int64_t sample_at(const Modality& modality, int64_t row) {
  const auto after = std::upper_bound(modality.offsets.begin(), modality.offsets.end(), row);
  return after - modality.offsets.begin() - 1;
}

// Of rows [first, first + count), which come in order. last: the last sample that was counted as outside.
void look_at_range(const DatasetIndex& index, const Modality& modality, const float* values, int64_t first,
                   int64_t count, int64_t& last, WaveformRange& range) {
  for (int64_t row = first; row < first + count;) {
    const int64_t sample = sample_at(modality, row), end = std::min(first + count, modality.offsets[sample + 1]);
    const float magnitude = magnitude_of(values + (row - first) * modality.dim, (end - row) * modality.dim);
    if (magnitude > 1) {
      range.merge({0, sample != last, magnitude, sample, index.ids[sample]});
      last = sample;
    }
    row = end;
  }
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
    report.bad_segments += tokens && i % dim == 1 && values[i] >= 0 && values[i] < static_cast<float>(id_limit);
    report.in_waveform = report.in_waveform || modality.kind == ModalityKind::kWaveform;
    if (found++ >= ScanReport::max_listed) continue;
    const int64_t row = first + i / dim;
    const int64_t sample = sample_at(modality, row);
    report.first.push_back(
        {modality.name, sample, index.ids[sample], row - modality.offsets[sample], i % dim, values[i]});
  }
}

}  // namespace

void WaveformRange::merge(const WaveformRange& other) {
  samples += other.samples;
  outside += other.outside;
  if (other.largest < largest ||
      (other.largest == largest && (other.sample < 0 || (sample >= 0 && sample <= other.sample))))
    return;
  largest = other.largest;
  sample = other.sample;
  id = other.id;
}

void ScanReport::merge(const ScanReport& other) {
  values += other.values;
  non_finite += other.non_finite;
  in_waveform = in_waveform || other.in_waveform;
  bad_ids += other.bad_ids;
  bad_segments += other.bad_segments;
  for (const auto& [name, range] : other.waveforms) waveforms[name].merge(range);
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
  std::vector<int64_t> outside(modalities.size(), -1);  // the last waveform that is not in [-1, 1]
  for (int64_t start = first_sample; start < end_sample; start += run) {
    const int64_t end = std::min(start + run, end_sample);
    for (size_t m = 0; m < modalities.size(); ++m) {
      const Modality& modality = index.modalities.at(static_cast<size_t>(modalities[m]));
      if (!limits.empty() && limits[m].first < id_limit) report.vocabulary = limits[m].first;
      if (!limits.empty() && limits[m].second < id_limit) report.segments = limits[m].second;
      const bool is_waveform = modality.kind == ModalityKind::kWaveform;
      for (int64_t sample = start; is_waveform && sample < end; ++sample)
        report.waveforms[modality.name].samples += modality.length(sample) > 0;
      const int64_t rows = std::max<int64_t>(1, block_elements / modality.dim);
      for (int64_t row = modality.offsets[start]; row < modality.offsets[end]; row += rows) {
        const int64_t count = std::min(rows, modality.offsets[end] - row);
        buffer.resize(static_cast<size_t>(count * modality.dim));
        dataset.read_frames(modalities[m], row, count, buffer.data());
        if (is_waveform)
          look_at_range(index, modality, buffer.data(), row, count, outside[m], report.waveforms[modality.name]);
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
  // Without limits there is one for both columns.
  const int64_t segments = report.segments > 0 ? report.bad_segments : 0, ids = report.bad_ids - segments;
  if (ids > 0)
    text += fmt::format("{}{} no ids of tokens{}.", text.empty() ? "" : "\n", are(ids, "value"),
                        report.vocabulary > 0
                            ? fmt::format(" of the encoder's vocabulary, which ends at {}", report.vocabulary - 1)
                            : fmt::format(", which are whole numbers from 0 to {}", id_limit - 1));
  if (segments > 0)
    text += fmt::format("{}{} not among the encoder's segment ids (column 1), which end at {} (type_vocab_size {}).",
                        text.empty() ? "" : "\n", are(segments, "value"), report.segments - 1, report.segments);
  for (const BadValue& place : report.first)
    text += fmt::format("\n  sample {}, {}, frame {}, column {}: {}", in_quotes(place.id), place.modality, place.frame,
                        place.column, value_name(place.value));
  const int64_t more = report.non_finite + report.bad_ids - static_cast<int64_t>(report.first.size());
  if (more > 0) text += fmt::format("\n  and {} more", more);
  return text;
}

std::vector<std::string> warnings(const ScanReport& report) {
  std::vector<std::string> all;
  for (const auto& [name, range] : report.waveforms)
    if (range.outside > 0)
      all.push_back(fmt::format("{} of {} of {} {} values outside [-1, 1] (largest {:.4g}, sample {})", range.outside,
                                plural(range.samples, "waveform"), name, range.outside == 1 ? "has" : "have",
                                range.largest, in_quotes(range.id)));
  return all;
}

}  // namespace muster::data
