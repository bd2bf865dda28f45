#include "core/batch/reader.h"

namespace muster::batch {

BatchReader::BatchReader(const data::Dataset& dataset, std::vector<int64_t> modalities, std::vector<FeatureMoments> moments,
                         at::ScalarType dtype)
    : dataset_(dataset), modalities_(std::move(modalities)), dtype_(dtype) {
  for (const auto& moment : moments) {
    means_.push_back(moment.mean.to(dtype));
    inverses_.push_back(moment.standard_deviation.reciprocal().to(dtype));
  }
}

Ragged BatchReader::read_modality(int64_t position, const std::vector<int64_t>& samples) const {
  const int64_t modality = modalities_[position];
  const auto& info = dataset_.index().modalities[modality];
  Ragged ragged;
  ragged.offsets.reserve(samples.size() + 1);
  ragged.offsets.push_back(0);
  for (const int64_t sample : samples) ragged.offsets.push_back(ragged.offsets.back() + info.length(sample));
  at::Tensor values = at::empty({ragged.rows(), info.dim}, at::kFloat);
  float* out = values.mutable_data_ptr<float>();
  for (size_t i = 0; i < samples.size(); ++i)
    if (ragged.length(i) > 0)
      dataset_.read_frames(modality, info.offsets[samples[i]], ragged.length(i), out + ragged.offsets[i] * info.dim);
  ragged.values = values.to(dtype_);
  if (!means_.empty()) ragged.values.sub_(means_[position]).mul_(inverses_[position]);
  return ragged;
}

Batch BatchReader::read(const std::vector<int64_t>& samples, const std::vector<int64_t>& global_rows) const {
  Batch batch;
  batch.samples = samples;
  batch.global_rows = global_rows;
  for (size_t position = 0; position < modalities_.size(); ++position)
    batch.modalities.push_back(read_modality(static_cast<int64_t>(position), samples));
  if (dataset_.index().has_labels()) batch.labels = labels(samples);
  return batch;
}

at::Tensor BatchReader::labels(const std::vector<int64_t>& samples) const {
  at::Tensor labels = at::empty({static_cast<int64_t>(samples.size())}, at::kDouble);
  double* out = labels.mutable_data_ptr<double>();
  for (size_t i = 0; i < samples.size(); ++i) out[i] = dataset_.index().labels[samples[i]];
  return labels.to(dataset_.index().task == data::Task::kClassification ? at::kLong : dtype_);
}

at::Tensor BatchReader::presence(const std::vector<int64_t>& samples) const {
  at::Tensor presence = at::empty({static_cast<int64_t>(samples.size()), static_cast<int64_t>(modalities_.size())}, at::kBool);
  bool* out = presence.mutable_data_ptr<bool>();
  for (const int64_t sample : samples)
    for (const int64_t modality : modalities_) *out++ = dataset_.index().modalities[modality].length(sample) > 0;
  return presence;
}

}  // namespace muster::batch
