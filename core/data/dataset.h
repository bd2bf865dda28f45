#pragma once

#include <cstdint>
#include <string>
#include <vector>

// What a dataset is to the rest of muster: an index of its samples in memory, and frames read on demand.
namespace muster::data {

enum class Task {
  kRegression,
  kClassification,
  kMultilabel  // each class is there or not, whatever the others are
};
inline const char* name_of(Task task) {
  return task == Task::kClassification ? "classification" : task == Task::kMultilabel ? "multilabel" : "regression";
}

// What the rows of a modality are: features, made beforehand, or what an encoder makes features of.
enum class ModalityKind {
  kFeatures,
  kWaveform,  // mono audio, one value per row, in [-1, 1]
  kTokens     // ids of a vocabulary, one per row, and, where dim is 2, the segment (token type) id
};

inline const char* name_of(ModalityKind kind) {
  return kind == ModalityKind::kWaveform ? "waveform" : kind == ModalityKind::kTokens ? "tokens" : "features";
}

// Ids of tokens and segments are below this, so that float32 holds each exactly.
constexpr int64_t id_limit = int64_t{1} << 24;

// One modality of all samples. Frames of sample i are rows [offsets[i], offsets[i+1]) of one long [frames, dim] table;
// an empty range means that the modality is missing for that sample.
struct Modality {
  std::string name;
  int64_t dim = 0;
  std::vector<int64_t> offsets;  // samples + 1, starts at 0, never falls
  ModalityKind kind = ModalityKind::kFeatures;
  int64_t sample_rate = 0;  // of a waveform, in Hz

  int64_t length(int64_t sample) const { return offsets[sample + 1] - offsets[sample]; }
};

// Everything but the frames. All per-sample vectors have the same length, in the order of the file ("dataset order").
struct DatasetIndex {
  std::string name;
  Task task = Task::kRegression;
  std::vector<std::string> class_names;  // of classification and multi-label data
  std::vector<std::string> ids;          // unique
  std::vector<std::string> groups;       // session, speaker or video; empty strings where the file has none
  std::vector<std::string> splits;       // "train", "valid", "test" or ""
  std::vector<double> labels;            // label_width() per sample; empty when the file has no labels
  std::vector<Modality> modalities;      // in the order of the file's names, sorted

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  bool has_labels() const { return !labels.empty() || ids.empty(); }
  // Numbers in a sample's label: a regression value, a class as an integer, or a 0 or 1 for each class of multi-label
  // data.
  int64_t label_width() const { return task == Task::kMultilabel ? static_cast<int64_t>(class_names.size()) : 1; }
  const double* label_of(int64_t sample) const { return labels.data() + sample * label_width(); }
  // Position in `modalities`, or -1.
  int64_t find_modality(const std::string& modality_name) const {
    for (size_t position = 0; position < modalities.size(); ++position)
      if (modalities[position].name == modality_name) return static_cast<int64_t>(position);
    return -1;
  }
};

// An open dataset. Every rank opens its own; nothing is shared between processes but the operating system's page cache.
class Dataset {
 public:
  virtual ~Dataset() = default;
  Dataset() = default;
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;

  const DatasetIndex& index() const { return index_; }

  // Copies frames [first, first + count) of modality `modality` (position in index().modalities) to `out`
  // ([count, dim] row-major, float32; other types are converted, int16 of a waveform divided by 32768, ids of tokens as
  // they are). Ids are checked by scan_values() only. Safe to call from several threads.
  // Throws Error(kIo) when the file cannot be read, Error(kBadData) when it ends early.
  virtual void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const = 0;

  // SHA-256 in lower-case hex of what was opened: the file's bytes, or the description of generated data. Two datasets
  // with the same hash are the same data wherever they lie. Reads the whole file; call on one rank.
  virtual std::string content_hash() const = 0;

  // Path of the file, or "synthetic".
  virtual std::string source() const = 0;

 protected:
  DatasetIndex index_;
};

}  // namespace muster::data
