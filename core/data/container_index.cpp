#include "core/data/container_index.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <unordered_map>

#include "base/text.h"
#include "base/utf8.h"

namespace muster::data {
namespace {

using hdf5::Handle;
using hdf5::StoredDataset;

constexpr int64_t supported_version = 1;

std::string shape_text(const StoredDataset& dataset) {
  std::string text;
  for (const int64_t extent : dataset.shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

// Reads one file; every member adds to `problems_` what it finds wrong and goes on as far as that makes sense.
class Reader {
 public:
  Reader(const hdf5::File& file, const std::string& path, const OpenOptions& options, Problems& problems)
      : file_(file), path_(path), options_(options), problems_(problems) {}

  ContainerIndex read() {
    root_ = Handle(H5Gopen2(file_.handle.get(), "/", H5P_DEFAULT), &H5Gclose);
    if (!root_.valid()) {
      problems_.add("/: cannot be opened" + hdf5::reason());
      return std::move(result_);
    }
    if (!problems_.attempt([&] { check_format(); })) return std::move(result_);
    problems_.attempt([&] { read_header(); });
    problems_.attempt([&] { read_samples(); });
    problems_.attempt([&] { read_modalities(); });
    return std::move(result_);
  }

 private:
  void check_format() {
    if (!hdf5::has_attribute(root_, "format"))
      throw Problem(
          "/: attribute 'format' is missing; this is an HDF5 file, but no muster dataset (format=\"muster-dataset\", "
          "version=1)");
    const std::string format = hdf5::read_one_string_attribute(root_, "format", "/");
    if (format != "muster-dataset")
      throw Problem("/: attribute 'format' is " + in_quotes(format) + ", not 'muster-dataset'");
    const int64_t version = hdf5::read_integer_attribute(root_, "version", "/");
    if (version != supported_version)
      throw Problem("/: written by version " + std::to_string(version) + "; this muster reads " +
                    std::to_string(supported_version));
  }

  void read_header() {
    DatasetIndex& index = result_.index;
    index.name = std::filesystem::path(path_).stem().string();
    problems_.attempt([&] {
      if (hdf5::has_attribute(root_, "name")) index.name = hdf5::read_one_string_attribute(root_, "name", "/");
    });
    const std::string task = hdf5::read_one_string_attribute(root_, "task", "/");
    if (task != "regression" && task != "classification")
      throw Problem("/: attribute 'task' is " + in_quotes(task) + "; it must be 'regression' or 'classification'");
    task_known_ = true;
    if (task == "regression") return;
    index.task = Task::kClassification;
    index.class_names = read_class_names(root_, "/");
  }

  std::vector<std::string> read_class_names(const Handle& object, const std::string& path) {
    const auto names = hdf5::read_string_attribute(object, "class_names", path);
    if (names.size() < 2) throw Problem(path + ": attribute 'class_names' must name at least two classes");
    std::set<std::string> seen;
    for (const std::string& name : names) {
      if (name.empty()) throw Problem(path + ": attribute 'class_names' holds an empty name");
      if (!seen.insert(name).second)
        throw Problem(path + ": attribute 'class_names' holds " + in_quotes(name) + " twice");
    }
    return names;
  }

  void read_samples() {
    const Handle samples = hdf5::open_group(root_, "samples", "/samples");
    problems_.attempt([&] { read_ids(samples); });
    if (!ids_known_) {
      problems_.attempt([&] { read_labels(samples); });
      return;
    }
    DatasetIndex& index = result_.index;
    problems_.attempt([&] { index.groups = read_optional_strings(samples, "group"); });
    problems_.attempt([&] {
      index.splits = read_optional_strings(samples, "split");
      for (size_t i = 0; i < index.splits.size(); ++i) {
        const std::string& split = index.splits[i];
        if (split != "train" && split != "valid" && split != "test" && !split.empty())
          problems_.add("/samples/split: " + sample(i) + " has " + in_quotes(split) +
                        "; allowed are 'train', 'valid', 'test' and ''");
      }
    });
    problems_.attempt([&] { read_labels(samples); });
  }

  void read_ids(const Handle& samples) {
    auto ids = hdf5::read_strings(hdf5::open_dataset(file_, samples, "id", "/samples/id"));
    if (ids.empty()) throw Problem("/samples/id: there are no samples");
    std::unordered_map<std::string, size_t> rows;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::string row = "row " + std::to_string(i);
      if (ids[i].empty()) {
        problems_.add("/samples/id: the id in " + row + " is empty");
      } else if (!is_valid_utf8(ids[i])) {
        problems_.add("/samples/id: the id in " + row + " is not UTF-8: " + in_quotes(ids[i]));
      } else if (const auto [found, inserted] = rows.emplace(ids[i], i); !inserted) {
        problems_.add("/samples/id: " + in_quotes(ids[i]) + " occurs twice, in rows " + std::to_string(found->second) +
                      " and " + std::to_string(i));
      }
    }
    result_.index.ids = std::move(ids);
    ids_known_ = true;
  }

  // Strings of a dataset that a file need not have: then all are empty.
  std::vector<std::string> read_optional_strings(const Handle& samples, const std::string& name) {
    const std::string path = "/samples/" + name;
    if (!hdf5::has_child(samples, name)) return std::vector<std::string>(result_.index.ids.size());
    auto values = hdf5::read_strings(hdf5::open_dataset(file_, samples, name, path));
    require_one_per_sample(values.size(), path);
    for (size_t i = 0; i < values.size(); ++i) {
      if (!is_valid_utf8(values[i]))
        problems_.add(path + ": the value of " + sample(i) + " is not UTF-8: " + in_quotes(values[i]));
    }
    return values;
  }

  void read_labels(const Handle& samples) {
    Handle targets;
    if (hdf5::has_child(samples, "targets")) {
      targets = hdf5::open_group(samples, "targets", "/samples/targets");
      result_.targets = hdf5::child_names(targets, "/samples/targets");
    }
    const std::string& target = options_.target;
    const std::string path = target.empty() ? "/samples/label" : "/samples/targets/" + target;
    const bool present = target.empty() ? hdf5::has_child(samples, "label")
                                        : std::binary_search(result_.targets.begin(), result_.targets.end(), target);
    if (!present) {
      if (options_.labels_required)
        throw Problem(path + ": is missing, but labels are needed; targets in this file: " +
                      (result_.targets.empty() ? "none" : join(result_.targets)));
      return;
    }
    const StoredDataset dataset =
        hdf5::open_dataset(file_, target.empty() ? samples : targets, target.empty() ? "label" : target, path);
    if (!target.empty()) choose_task_of_target(dataset);
    if (!task_known_) return;
    DatasetIndex& index = result_.index;
    const bool classification = index.task == Task::kClassification;
    if (classification) {
      const auto classes = hdf5::read_integers(dataset);
      index.labels.assign(classes.begin(), classes.end());
    } else {
      index.labels = hdf5::read_floats(dataset);
    }
    if (!ids_known_) return;
    require_one_per_sample(index.labels.size(), path);
    check_labels(path);
  }

  // A further target says by its type what it is: the emotions of a sentiment file may be classes, and the other way
  // round.
  void choose_task_of_target(const StoredDataset& dataset) {
    DatasetIndex& index = result_.index;
    if (dataset.type_class() == H5T_FLOAT) {
      index.task = Task::kRegression;
      index.class_names.clear();
    } else if (hdf5::has_attribute(dataset.handle, "class_names")) {
      index.task = Task::kClassification;
      index.class_names = read_class_names(dataset.handle, dataset.path);
    } else if (task_known_ && index.task == Task::kRegression && dataset.type_class() == H5T_INTEGER) {
      throw Problem(dataset.path +
                    ": is of an integer type, so it needs an attribute 'class_names'; a regression target is float32");
    }
  }

  void check_labels(const std::string& path) {
    const DatasetIndex& index = result_.index;
    const double classes = static_cast<double>(index.class_names.size());
    for (size_t i = 0; i < index.labels.size(); ++i) {
      const double label = index.labels[i];
      if (!std::isfinite(label)) {
        problems_.add(path + ": the label of " + sample(i) + " is " + (std::isnan(label) ? "NaN" : "infinite"));
      } else if (index.task == Task::kClassification && !index.class_names.empty() && (label < 0 || label >= classes)) {
        problems_.add(path + ": the label of " + sample(i) + " is " + std::to_string(static_cast<int64_t>(label)) +
                      ", but there are " + std::to_string(index.class_names.size()) + " classes, numbered from 0");
      }
    }
  }

  void read_modalities() {
    const Handle modalities = hdf5::open_group(root_, "modalities", "/modalities");
    const auto names = hdf5::child_names(modalities, "/modalities");
    if (names.empty()) throw Problem("/modalities: there are no modalities");
    for (const std::string& name : names) {
      const std::string path = "/modalities/" + name;
      problems_.attempt([&] {
        const Handle group = hdf5::open_group(modalities, name, path);
        Modality modality;
        modality.name = name;
        StoredDataset values;
        const bool readable = problems_.attempt([&] { values = open_values(group, path + "/values"); });
        modality.offsets = hdf5::read_integers(hdf5::open_dataset(file_, group, "offsets", path + "/offsets"));
        check_offsets(modality.offsets, readable ? values.shape[0] : -1, path + "/offsets");
        if (!readable) return;
        modality.dim = values.shape[1];
        result_.index.modalities.push_back(std::move(modality));
        result_.values.push_back(std::move(values));
      });
    }
  }

  StoredDataset open_values(const Handle& group, const std::string& path) {
    StoredDataset values = hdf5::open_dataset(file_, group, "values", path);
    if (values.shape.size() != 2)
      throw Problem(path + ": must have two dimensions [frames, dim], but its shape is " + shape_text(values));
    if (values.type_class() != H5T_FLOAT ||
        (values.type_bytes() != 2 && values.type_bytes() != 4 && values.type_bytes() != 8))
      throw Problem(path + ": must be float32 (float16 and float64 are read too), but is " +
                    hdf5::type_name(values.type.get()));
    if (values.shape[1] == 0) throw Problem(path + ": has no columns; its shape is " + shape_text(values));
    return values;
  }

  // frames: rows of the values, or -1 when these are not known.
  void check_offsets(const std::vector<int64_t>& offsets, int64_t frames, const std::string& path) {
    if (ids_known_ && offsets.size() != result_.index.ids.size() + 1)
      throw Problem(path + ": must have " + std::to_string(result_.index.ids.size() + 1) +
                    " entries, one more than there are samples, but has " + std::to_string(offsets.size()));
    if (offsets.empty()) throw Problem(path + ": is empty; it must have one entry more than there are samples");
    if (offsets[0] != 0) problems_.add(path + ": starts at " + std::to_string(offsets[0]) + "; it must start at 0");
    bool ordered = true;
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      const bool backwards = offsets[i + 1] < offsets[i];
      const bool past = frames >= 0 && offsets[i + 1] > frames && offsets[i] <= frames;
      if (backwards)
        problems_.add(path + ": goes backwards at " + sample(i) + ", from " + std::to_string(offsets[i]) + " to " +
                      std::to_string(offsets[i + 1]));
      if (past)
        problems_.add(path + ": " + sample(i) + " ends at frame " + std::to_string(offsets[i + 1]) +
                      ", but there are " + std::to_string(frames));
      ordered = ordered && !backwards && !past;
    }
    if (ordered && frames >= 0 && offsets.back() != frames)
      problems_.add(path + ": ends at " + std::to_string(offsets.back()) + "; it must end at the number of frames, " +
                    std::to_string(frames));
  }

  void require_one_per_sample(size_t count, const std::string& path) const {
    if (count == result_.index.ids.size()) return;
    throw Problem(path + ": has " + std::to_string(count) + " entries, but there are " +
                  std::to_string(result_.index.ids.size()) + " samples");
  }

  std::string sample(size_t row) const {
    if (!ids_known_ || row >= result_.index.ids.size()) return "sample " + std::to_string(row);
    return "sample " + in_quotes(result_.index.ids[row]) + " (row " + std::to_string(row) + ")";
  }

  const hdf5::File& file_;
  const std::string& path_;
  const OpenOptions& options_;
  Problems& problems_;
  Handle root_;
  bool ids_known_ = false;
  bool task_known_ = false;
  ContainerIndex result_;
};

}  // namespace

ContainerIndex read_container_index(const hdf5::File& file, const std::string& path, const OpenOptions& options,
                                    Problems& problems) {
  return Reader(file, path, options, problems).read();
}

std::vector<std::string> container_problems(const std::string& path, const OpenOptions& options) {
  const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
  hdf5::prepare_library();
  Problems problems(path, kListedProblems);
  problems.attempt([&] {
    const hdf5::File file = hdf5::open_file(path);
    read_container_index(file, path, options, problems);
  });
  return problems.lines();
}

}  // namespace muster::data
