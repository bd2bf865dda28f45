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

// Outside of these a rate is no rate in Hz, but one in kHz or a number of samples.
constexpr int64_t lowest_sample_rate = 1000, highest_sample_rate = 1000000;

using hdf5::fail;
using hdf5::Handle;
using hdf5::StoredDataset;

// Reads one file; every member adds what it finds wrong to `problems_` and continues as far as that makes sense.
class Reader {
 public:
  Reader(const hdf5::File& file, const std::string& path, const OpenOptions& options, Problems& problems)
      : file_(file), path_(path), options_(options), problems_(problems) {}

  ContainerIndex read() {
    if (!problems_.attempt([&] { check_format(); })) return std::move(result_);
    problems_.attempt([&] { read_header(); });
    problems_.attempt([&] { read_samples(); });
    problems_.attempt([&] { read_modalities(); });
    return std::move(result_);
  }

 private:
  void check_format() {
    root_ = Handle(H5Gopen2(file_.handle.get(), "/", H5P_DEFAULT), &H5Gclose);
    if (!root_.valid()) fail("/", "cannot be opened{}", hdf5::reason());
    if (!hdf5::has_attribute(root_, "format"))
      fail("/",
           "attribute 'format' is missing; this is an HDF5 file, but no muster dataset "
           "(format=\"muster-dataset\", version=1)");
    const std::string format = hdf5::read_one_string_attribute(root_, "format", "/");
    if (format != "muster-dataset") fail("/", "attribute 'format' is {}, not 'muster-dataset'", in_quotes(format));
    const int64_t version = hdf5::read_integer_attribute(root_, "version", "/");
    if (version != 1) fail("/", "written by version {}; this muster reads 1", version);
  }

  void read_header() {
    DatasetIndex& index = result_.index;
    index.name = std::filesystem::path(path_).stem().string();
    problems_.attempt([&] {
      if (hdf5::has_attribute(root_, "name")) index.name = hdf5::read_one_string_attribute(root_, "name", "/");
    });
    const std::string task = hdf5::read_one_string_attribute(root_, "task", "/");
    for (const Task known : {Task::kRegression, Task::kClassification, Task::kMultilabel}) {
      if (task != name_of(known)) continue;
      task_known_ = true;
      index.task = known;
    }
    if (!task_known_)
      fail("/", "attribute 'task' is {}; it must be 'regression', 'classification' or 'multilabel'", in_quotes(task));
    if (index.task != Task::kRegression) index.class_names = read_class_names(root_, "/");
  }

  std::vector<std::string> read_class_names(const Handle& object, const std::string& path) {
    const auto names = hdf5::read_string_attribute(object, "class_names", path);
    if (names.empty() || (names.size() < 2 && result_.index.task == Task::kClassification))
      fail(path, "attribute 'class_names' must name at least {}", names.empty() ? "one class" : "two classes");
    std::set<std::string> seen;
    for (const std::string& name : names) {
      if (name.empty()) fail(path, "attribute 'class_names' holds an empty name");
      if (!seen.insert(name).second) fail(path, "attribute 'class_names' holds {} twice", in_quotes(name));
    }
    return names;
  }

  void read_samples() {
    const Handle samples = hdf5::open_group(root_, "samples", "/samples");
    problems_.attempt([&] { read_ids(samples); });
    if (ids_known_) {
      problems_.attempt([&] { result_.index.groups = read_optional_strings(samples, "group"); });
      problems_.attempt([&] { read_splits(samples); });
    }
    problems_.attempt([&] { read_labels(samples); });
  }

  void read_splits(const Handle& samples) {
    std::vector<std::string>& splits = result_.index.splits;
    splits = read_optional_strings(samples, "split");
    for (size_t i = 0; i < splits.size(); ++i)
      if (splits[i] != "train" && splits[i] != "valid" && splits[i] != "test" && !splits[i].empty())
        add("/samples/split", "{} has {}; allowed are 'train', 'valid', 'test' and ''", sample(i),
            in_quotes(splits[i]));
  }

  void read_ids(const Handle& samples) {
    auto ids = hdf5::read_strings(hdf5::open_dataset(file_, samples, "id", "/samples/id"));
    if (ids.empty()) fail("/samples/id", "there are no samples");
    std::unordered_map<std::string, size_t> rows;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i].empty()) {
        add("/samples/id", "the id in row {} is empty", i);
      } else if (!is_valid_utf8(ids[i])) {
        add("/samples/id", "the id in row {} is not UTF-8: {}", i, in_quotes(ids[i]));
      } else if (const auto [found, inserted] = rows.emplace(ids[i], i); !inserted) {
        add("/samples/id", "{} occurs twice, in rows {} and {}", in_quotes(ids[i]), found->second, i);
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
    for (size_t i = 0; i < values.size(); ++i)
      if (!is_valid_utf8(values[i])) add(path, "the value of {} is not UTF-8: {}", sample(i), in_quotes(values[i]));
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
        fail(path, "is missing, but labels are needed; targets in this file: {}",
             result_.targets.empty() ? "none" : join(result_.targets));
      return;
    }
    const StoredDataset dataset =
        hdf5::open_dataset(file_, target.empty() ? samples : targets, target.empty() ? "label" : target, path);
    if (!target.empty()) choose_task_of_target(dataset);
    if (!task_known_) return;
    DatasetIndex& index = result_.index;
    if (index.task == Task::kRegression) {
      index.labels = hdf5::read_floats(dataset);
    } else {
      const bool rows = index.task == Task::kMultilabel;
      const auto classes = rows ? hdf5::read_integer_rows(dataset) : hdf5::read_integers(dataset);
      if (rows && index.class_names.empty()) return;
      if (rows && dataset.shape[1] != index.label_width())
        fail(path, "has {} columns, but there are {} classes", dataset.shape[1], index.class_names.size());
      index.labels.assign(classes.begin(), classes.end());
    }
    if (!ids_known_) return;
    require_one_per_sample(static_cast<size_t>(dataset.shape[0]), path);
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
      index.task = dataset.shape.size() == 2 ? Task::kMultilabel : Task::kClassification;
      index.class_names = read_class_names(dataset.handle, dataset.path);
    } else if (task_known_ && dataset.type_class() == H5T_INTEGER &&
               (index.task == Task::kRegression || (index.task == Task::kMultilabel) != (dataset.shape.size() == 2))) {
      fail(dataset.path,
           "is of an integer type, so it needs an attribute 'class_names'; a regression target is float32");
    }
  }

  void check_labels(const std::string& path) {
    const DatasetIndex& index = result_.index;
    const double classes = static_cast<double>(index.class_names.size());
    const size_t width = static_cast<size_t>(index.label_width());
    for (size_t i = 0; i < index.labels.size(); ++i) {
      const double label = index.labels[i];
      if (!std::isfinite(label)) {
        add(path, "the label of {} is {}", sample(i), std::isnan(label) ? "NaN" : "infinite");
      } else if (index.task == Task::kMultilabel) {
        if (label != 0 && label != 1)
          add(path, "{} has {} for class {}; a class is there (1) or not (0)", sample(i / width),
              static_cast<int64_t>(label), in_quotes(index.class_names[i % width]));
      } else if (index.task == Task::kClassification && !index.class_names.empty() && (label < 0 || label >= classes)) {
        add(path, "the label of {} is {}, but there are {} classes, numbered from 0", sample(i),
            static_cast<int64_t>(label), index.class_names.size());
      }
    }
  }

  void read_modalities() {
    const Handle modalities = hdf5::open_group(root_, "modalities", "/modalities");
    const auto names = hdf5::child_names(modalities, "/modalities");
    if (names.empty()) fail("/modalities", "there are no modalities");
    for (const std::string& name : names) {
      const std::string path = "/modalities/" + name;
      problems_.attempt([&] {
        const Handle group = hdf5::open_group(modalities, name, path);
        Modality modality;
        modality.name = name;
        StoredDataset values;
        const bool readable = problems_.attempt([&] {
          values = open_values(group, path + "/values");
          check_kind(group, values, path, modality);
        });
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
      fail(path, "must have two dimensions [frames, dim], but its shape is {}", values.shape_text());
    const bool known_size = values.type_bytes == 2 || values.type_bytes == 4 || values.type_bytes == 8;
    if (!known_size || (values.type_class() != H5T_FLOAT &&
                        (values.type_class() != H5T_INTEGER || H5Tget_sign(values.type.get()) != H5T_SGN_2)))
      fail(
          path,
          "must be float32 (float16 and float64 are read too), int16 for a waveform or int32 for tokens (int64 is read "
          "too), but is {}",
          hdf5::type_name(values.type.get()));
    if (values.shape[1] == 0) fail(path, "has no columns; its shape is {}", values.shape_text());
    return values;
  }

  // What the rows are, which the type and the attribute sample_rate of the group say together. `path`: the group's.
  static void check_kind(const Handle& group, const StoredDataset& values, const std::string& path,
                         Modality& modality) {
    const bool integer = values.type_class() == H5T_INTEGER;
    const std::string type = hdf5::type_name(values.type.get());
    if (hdf5::has_attribute(values.handle, "sample_rate"))
      fail(values.path, "has an attribute 'sample_rate', which belongs to the group {}", path);
    const bool has_rate = hdf5::has_attribute(group, "sample_rate");
    if (has_rate && integer && values.type_bytes != 2)
      fail(path,
           "attribute 'sample_rate' makes it a waveform, but its values are {}; they must be float32 or int16, or, for "
           "tokens, without the attribute",
           type);
    if (has_rate && values.shape[1] != 1)
      fail(path, "attribute 'sample_rate' makes it a waveform, whose values have the shape [samples, 1], not {}",
           values.shape_text());
    if (!has_rate && integer && values.type_bytes == 2)
      fail(path,
           "its values are int16, which only those of a waveform may be: it needs an attribute 'sample_rate' (Hz); "
           "features must be float32, tokens int32");
    if (has_rate) {
      modality.kind = ModalityKind::kWaveform;
      modality.sample_rate = hdf5::read_integer_attribute(group, "sample_rate", path);
      if (modality.sample_rate < lowest_sample_rate || modality.sample_rate > highest_sample_rate)
        fail(path, "attribute 'sample_rate' is {}; it must be a rate in Hz, from {} to {}", modality.sample_rate,
             lowest_sample_rate, highest_sample_rate);
    } else if (integer) {
      modality.kind = ModalityKind::kTokens;
      if (values.shape[1] > 2)
        fail(
            values.path,
            "is {}, so its rows are tokens, which have one column (ids) or two (ids and segment ids), but its shape is "
            "{}; features must be float32",
            type, values.shape_text());
    }
  }

  // frames: rows of the values, or -1 when these are not known.
  void check_offsets(const std::vector<int64_t>& offsets, int64_t frames, const std::string& path) {
    if (ids_known_ && offsets.size() != result_.index.ids.size() + 1)
      fail(path, "must have {} entries, one more than there are samples, but has {}", result_.index.ids.size() + 1,
           offsets.size());
    if (offsets.empty()) fail(path, "is empty; it must have one entry more than there are samples");
    if (offsets[0] != 0) add(path, "starts at {}; it must start at 0", offsets[0]);
    bool ordered = true;
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      const bool backwards = offsets[i + 1] < offsets[i];
      const bool past = frames >= 0 && offsets[i + 1] > frames && offsets[i] <= frames;
      if (backwards) add(path, "goes backwards at {}, from {} to {}", sample(i), offsets[i], offsets[i + 1]);
      if (past) add(path, "{} ends at frame {}, but there are {}", sample(i), offsets[i + 1], frames);
      ordered = ordered && !backwards && !past;
    }
    if (ordered && frames >= 0 && offsets.back() != frames)
      add(path, "ends at {}; it must end at the number of frames, {}", offsets.back(), frames);
  }

  void require_one_per_sample(size_t count, const std::string& path) const {
    if (count != result_.index.ids.size())
      fail(path, "has {} entries, but there are {} samples", count, result_.index.ids.size());
  }

  template <typename... Values>
  void add(const std::string& path, fmt::format_string<Values...> text, Values&&... values) {
    problems_.at(path, fmt::format(text, std::forward<Values>(values)...));
  }

  std::string sample(size_t row) const {
    if (!ids_known_ || row >= result_.index.ids.size()) return fmt::format("sample {}", row);
    return fmt::format("sample {} (row {})", in_quotes(result_.index.ids[row]), row);
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

}  // namespace muster::data
