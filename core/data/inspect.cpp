#include "core/data/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/text.h"
#include "core/data/container.h"
#include "core/data/scan.h"

namespace muster::data {
namespace {

using nlohmann::json;

constexpr size_t max_groups_printed = 20;

double quantile(const std::vector<double>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);  // linear between neighbours, numpy's default
  const auto low = static_cast<size_t>(place);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (place - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

ScanReport scan_everything(const Dataset& dataset) {
  std::vector<int64_t> modalities(dataset.index().modalities.size());
  std::iota(modalities.begin(), modalities.end(), 0);
  return scan_values(dataset, modalities, 0, dataset.index().size());
}

json modality_json(const Dataset& dataset, size_t position, const ScanReport& scan) {
  const Modality& modality = dataset.index().modalities[position];
  const int64_t samples = dataset.index().size();
  std::vector<double> lengths;  // of samples that have the modality
  for (int64_t sample = 0; sample < samples; ++sample) {
    if (modality.length(sample) > 0) lengths.push_back(static_cast<double>(modality.length(sample)));
  }
  std::sort(lengths.begin(), lengths.end());
  json result{{"name", modality.name},
              {"kind", name_of(modality.kind)},
              {"dim", modality.dim},
              {"frames", modality.offsets.back()},
              {"missing", samples - static_cast<int64_t>(lengths.size())}};
  if (!lengths.empty()) {
    result["length"] = {
        {"min", lengths.front()},
        {"median", quantile(lengths, 0.5)},
        {"mean", std::accumulate(lengths.begin(), lengths.end(), 0.0) / static_cast<double>(lengths.size())},
        {"max", lengths.back()}};
  }
  if (modality.kind == ModalityKind::kWaveform) {
    const auto rate = static_cast<double>(modality.sample_rate);
    result["sample_rate"] = modality.sample_rate;
    result["seconds"] = {{"total", static_cast<double>(modality.offsets.back()) / rate},
                         {"longest", lengths.empty() ? 0.0 : lengths.back() / rate}};
  }
  if (const auto largest = scan.largest_id.find(modality.name); largest != scan.largest_id.end())
    result["largest_id"] = largest->second;
  if (const auto* container = dynamic_cast<const Container*>(&dataset)) {
    const FrameStorage& storage = container->storage()[position];
    result["storage"] = {{"type", storage.type},
                         {"layout", storage.layout},
                         {"direct", storage.direct},
                         {"bytes", storage.stored_bytes}};
  }
  return result;
}

// Adds the class of a sample, or all that it has, to the counts of the classes.
void count_classes(const DatasetIndex& index, int64_t sample, std::vector<int64_t>& counts) {
  const double* label = index.label_of(sample);
  if (index.task == Task::kClassification)
    ++counts[static_cast<size_t>(*label)];
  else
    for (int64_t& count : counts) count += *label++ > 0;
}

json labels_json(const DatasetIndex& index) {
  if (!index.has_labels()) return nullptr;
  if (index.task != Task::kRegression) {
    std::vector<int64_t> counts(index.class_names.size(), 0);
    for (int64_t sample = 0; sample < index.size(); ++sample) count_classes(index, sample, counts);
    json classes = json::array();
    for (size_t c = 0; c < counts.size(); ++c)
      classes.push_back({{"name", index.class_names[c]}, {"samples", counts[c]}});
    return {{"classes", classes}};
  }
  std::vector<double> sorted = index.labels;
  std::sort(sorted.begin(), sorted.end());
  const double count = static_cast<double>(sorted.size());
  const double mean = std::accumulate(sorted.begin(), sorted.end(), 0.0) / count;
  double square = 0;
  for (const double value : sorted) square += (value - mean) * (value - mean);
  return {{"mean", mean},
          {"std", std::sqrt(square / count)},
          {"min", sorted.front()},
          {"quantile_25", quantile(sorted, 0.25)},
          {"median", quantile(sorted, 0.5)},
          {"quantile_75", quantile(sorted, 0.75)},
          {"max", sorted.back()}};
}

// Samples of each split, and of each class in it.
json splits_json(const DatasetIndex& index) {
  const bool classes = index.task != Task::kRegression && index.has_labels();
  json result = json::object();
  for (const char* word : {"train", "valid", "test", ""}) {
    int64_t samples = 0;
    std::vector<int64_t> per_class(classes ? index.class_names.size() : 0, 0);
    for (size_t i = 0; i < index.splits.size(); ++i) {
      if (index.splits[i] != word) continue;
      ++samples;
      if (classes) count_classes(index, static_cast<int64_t>(i), per_class);
    }
    if (samples == 0) continue;
    result[word] = {{"samples", samples}};
    if (classes) result[word]["classes"] = per_class;
  }
  return result;
}

json groups_json(const DatasetIndex& index) {
  std::map<std::string, int64_t> counts;
  for (const std::string& group : index.groups)
    if (!group.empty()) ++counts[group];
  return counts;
}

std::string number(double value) { return fmt::format("{:.4g}", value); }

// Columns as wide as their widest cell; the first column to the left, the others to the right.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line = fmt::format("  {:<{}}", row[0], widths[0]);
    for (size_t i = 1; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], widths[i]);
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string modalities_text(const json& modalities) {
  std::vector<std::vector<std::string>> rows{
      {"modality", "kind", "dim", "frames", "min", "median", "mean", "max", "missing", "stored as"}};
  for (const json& modality : modalities) {
    std::vector<std::string> row{modality["name"], modality["kind"], modality["dim"].dump(), modality["frames"].dump()};
    for (const char* key : {"min", "median", "mean", "max"})
      row.push_back(modality.contains("length") ? number(modality["length"][key]) : "-");
    row.push_back(modality["missing"].dump());
    const json storage = modality.value("storage", json());
    row.push_back(storage.is_null()
                      ? "generated"
                      : fmt::format("{} {}{}", storage["type"].get<std::string>(), storage["layout"].get<std::string>(),
                                    storage["direct"].get<bool>() ? "" : " (read through HDF5: slower)"));
    rows.push_back(row);
  }
  std::string text = table(rows);
  for (const json& modality : modalities) {
    const auto name = modality["name"].get<std::string>();
    if (modality.contains("seconds"))
      text += fmt::format("  {}: {} Hz, {:.2f} s in all, the longest {:.2f} s\n", name, modality["sample_rate"].dump(),
                          modality["seconds"]["total"].get<double>(), modality["seconds"]["longest"].get<double>());
    if (modality.contains("largest_id"))
      text += fmt::format("  {}: the longest has {} tokens, the largest id is {}\n", name,
                          modality.contains("length") ? number(modality["length"]["max"]) : "0",
                          modality["largest_id"].dump());
  }
  return text;
}

std::string labels_text(const json& labels, int64_t samples) {
  if (labels.is_null()) return "labels      none\n";
  std::vector<std::vector<std::string>> rows;
  if (labels.contains("classes")) {
    rows.push_back({"class", "samples", "share"});
    for (const json& entry : labels["classes"]) {
      const double percent = 100 * entry["samples"].get<double>() / static_cast<double>(samples);
      rows.push_back({entry["name"], entry["samples"].dump(), number(percent) + " %"});
    }
  } else {
    rows.push_back({"label", "mean", "std", "min", "25 %", "median", "75 %", "max"});
    rows.push_back({""});
    for (const char* key : {"mean", "std", "min", "quantile_25", "median", "quantile_75", "max"})
      rows.back().push_back(number(labels[key]));
  }
  return table(rows);
}

std::string splits_text(const json& splits, const DatasetIndex& index) {
  std::vector<std::vector<std::string>> rows{{"split", "samples"}};
  if (index.task != Task::kRegression && index.has_labels())
    rows[0].insert(rows[0].end(), index.class_names.begin(), index.class_names.end());
  for (const auto& name : {"train", "valid", "test", ""}) {
    if (!splits.contains(name)) continue;
    rows.push_back({*name ? name : "(none)", splits[name]["samples"].dump()});
    if (!splits[name].contains("classes")) continue;
    for (const json& count : splits[name]["classes"]) rows.back().push_back(count.dump());
  }
  return table(rows);
}

std::string groups_text(const json& groups) {
  if (groups.empty()) return "groups      none\n";
  std::vector<std::string> listed;
  for (const auto& [name, count] : groups.items())
    if (listed.size() < max_groups_printed) listed.push_back(name + " " + count.dump());
  const size_t more = groups.size() - listed.size();
  return fmt::format("groups      {}: {}{}\n", groups.size(), join(listed),
                     more > 0 ? fmt::format(" and {} more", more) : "");
}

}  // namespace

json inspect_json(const Dataset& dataset) {
  const DatasetIndex& index = dataset.index();
  const ScanReport scan = scan_everything(dataset);
  json result{{"source", dataset.source()},   {"name", index.name},
              {"task", name_of(index.task)},  {"samples", index.size()},
              {"labels", labels_json(index)}, {"splits", splits_json(index)},
              {"groups", groups_json(index)}, {"non_finite", scan.non_finite},
              {"values", scan.values},        {"content_hash", dataset.content_hash()},
              {"bad_ids", scan.bad_ids}};
  result["modalities"] = json::array();
  for (size_t m = 0; m < index.modalities.size(); ++m) result["modalities"].push_back(modality_json(dataset, m, scan));
  if (const auto* container = dynamic_cast<const Container*>(&dataset)) {
    result["file_bytes"] = container->file_bytes();
    result["targets"] = container->targets();
  }
  return result;
}

std::string inspect(const Dataset& dataset) {
  const json facts = inspect_json(dataset);
  const DatasetIndex& index = dataset.index();
  std::string text = fmt::format("dataset     {}\nsource      {}\n", index.name, dataset.source());
  if (facts.contains("file_bytes"))
    text += fmt::format("file size   {}\n", size_text(facts["file_bytes"].get<double>()));
  text += fmt::format("sha256      {}\ntask        {}\nsamples     {}\n", facts["content_hash"].get<std::string>(),
                      name_of(index.task), index.size());
  if (const auto targets = facts.value("targets", std::vector<std::string>()); !targets.empty())
    text += fmt::format("targets     {}\n", join(targets, " "));
  text += groups_text(facts["groups"]);
  text += fmt::format("non-finite  {} of {} values{}\n", facts["non_finite"].dump(), facts["values"].dump(),
                      facts["non_finite"] > 0 ? " (`muster data verify` lists them)" : "");
  if (facts["bad_ids"] > 0)
    text += fmt::format("bad ids     {} (`muster data verify` lists them)\n", facts["bad_ids"].dump());
  return fmt::format("{}\n{}\n{}\n{}", text, modalities_text(facts["modalities"]),
                     labels_text(facts["labels"], index.size()), splits_text(facts["splits"], index));
}

std::vector<std::string> verify(const std::string& path, std::vector<std::string>* warnings) {
  std::vector<std::string> problems = container_problems(path, {});
  if (!problems.empty()) return problems;
  const auto container = open_container(path);
  for (const std::string& target : container->targets())
    for (const std::string& problem : container_problems(path, {target})) problems.push_back(problem);
  const ScanReport scan = scan_everything(*container);
  if (!scan.is_good()) problems.push_back(describe(scan));
  if (warnings) *warnings = data::warnings(scan);
  return problems;
}

}  // namespace muster::data
