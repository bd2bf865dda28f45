#include "core/batch/reader.h"

#include <algorithm>

namespace muster::batch {

BatchReader::BatchReader(const data::Dataset& dataset, std::vector<int64_t> modalities,
                         std::vector<FeatureMoments> moments, at::ScalarType dtype, c10::Device device, bool in_float32,
                         std::vector<RowLimits> limits, double clip_standardized)
    : dataset_(dataset),
      modalities_(std::move(modalities)),
      moments_(std::move(moments)),
      in_float32_(in_float32),
      dtype_(dtype),
      device_(device),
      limits_(std::move(limits)),
      clip_standardized_(clip_standardized) {
  for (auto& moment : moments_) {
    if (in_float32) {
      inverses_.push_back(moment.standard_deviation.reciprocal().to(dtype).to(device));
      moment.mean = moment.mean.to(dtype);
    }
    moment.mean = moment.mean.to(device);
    moment.standard_deviation = moment.standard_deviation.to(device);
  }
}

bool BatchReader::keep_on_device(Residency wanted, int ranks) {
  if (device_.is_cpu() || wanted == config::Training::NEVER) return false;
  std::vector<ResidentFrames::Table> tables;
  int64_t bytes = 0;
  for (int64_t position = 0; position < static_cast<int64_t>(modalities_.size()); ++position) {
    const int64_t frames = modality(position).offsets.back();
    tables.push_back({frames, dim(position), dtype_of(position)});
    bytes += frames * dim(position) * static_cast<int64_t>(c10::elementSize(dtype_of(position)));
  }
  if (!keep_resident(wanted, bytes, free_device_memory(device_), ranks)) return false;
  resident_ = std::make_shared<const ResidentFrames>(
      tables, at::TensorOptions().device(device_), [&](int64_t position, int64_t first, int64_t count) {
        const at::Tensor host = host_frames(count, dim(position));
        dataset_.read_frames(modalities_[position], first, count, host.mutable_data_ptr<float>());
        return ready(host, position);
      });
  return true;
}

at::Tensor BatchReader::host_frames(int64_t rows, int64_t dim) const {
  return at::empty({rows, dim}, at::TensorOptions().dtype(at::kFloat).pinned_memory(device_.is_cuda()));
}

at::Tensor BatchReader::ready(const at::Tensor& host, int64_t position) const {
  const at::Tensor values = host.to(device_, /*non_blocking=*/true);
  if (moments_.empty() || moments_[position].mean.numel() == 0) return values.to(dtype_of(position));
  at::Tensor result = standardized(values, moments_[position], position);
  if (clip_standardized_ > 0) result.clamp_(-clip_standardized_, clip_standardized_);
  return result;
}

at::Tensor BatchReader::standardized(const at::Tensor& values, const FeatureMoments& moments, int64_t position) const {
  if (values.is_cpu() && dtype_ == at::kFloat && !in_float32_) {
    standardize_rows(values, moments);
    return values;
  }
  if (in_float32_) return values.to(dtype_).sub_(moments.mean).mul_(inverses_[position]);
  return values.to(at::kDouble).sub_(moments.mean).div_(moments.standard_deviation).to(dtype_);
}

int64_t BatchReader::length(int64_t position, int64_t sample) const {
  const int64_t rows = modality(position).length(sample);
  return limits_.empty() ? rows : limits_[position].of(rows);
}

Ragged BatchReader::read_modality(int64_t position, const std::vector<int64_t>& samples,
                                  const at::Tensor& presence) const {
  const data::Modality& info = modality(position);
  Ragged ragged;
  ragged.offsets.reserve(samples.size() + 1);
  ragged.offsets.push_back(0);
  for (size_t i = 0; i < samples.size(); ++i) {
    const bool counts =
        !presence.defined() || presence.const_data_ptr<bool>()[static_cast<int64_t>(i) * presence.size(1) + position];
    ragged.offsets.push_back(ragged.offsets.back() + (counts ? length(position, samples[i]) : 0));
  }
  if (resident_) {
    std::vector<int64_t> first_rows;
    for (const int64_t sample : samples) first_rows.push_back(info.offsets[sample]);
    ragged.values = resident_->gather(position, first_rows, ragged.offsets);
    return ragged;
  }
  const at::Tensor host = host_frames(ragged.rows(), info.dim);
  float* out = host.mutable_data_ptr<float>();
  for (size_t i = 0; i < samples.size(); ++i)
    if (ragged.length(i) > 0)
      dataset_.read_frames(modalities_[position], info.offsets[samples[i]], ragged.length(i),
                           out + ragged.offsets[i] * info.dim);
  ragged.values = ready(host, position);
  return ragged;
}

Batch BatchReader::read(const std::vector<int64_t>& samples, const std::vector<int64_t>& batch_index,
                        const at::Tensor& presence) const {
  Batch batch;
  batch.samples = samples;
  batch.batch_index = batch_index;
  for (size_t position = 0; position < modalities_.size(); ++position)
    batch.modalities.push_back(read_modality(static_cast<int64_t>(position), samples, presence));
  if (!dataset_.index().has_labels()) return batch;
  batch.labels = labels(samples);
  if (device_.is_cuda()) batch.labels = batch.labels.pin_memory().to(device_, /*non_blocking=*/true);
  return batch;
}

at::Tensor BatchReader::labels(const std::vector<int64_t>& samples) const {
  const data::DatasetIndex& index = dataset_.index();
  const int64_t width = index.label_width();
  at::Tensor labels = at::empty({static_cast<int64_t>(samples.size()), width}, at::kDouble);
  double* out = labels.mutable_data_ptr<double>();
  for (const int64_t sample : samples) out = std::copy_n(index.label_of(sample), width, out);
  if (index.task == data::Task::kMultilabel) return labels.to(dtype_);
  return labels.squeeze(1).to(index.task == data::Task::kClassification ? at::kLong : dtype_);
}

at::Tensor BatchReader::presence(const std::vector<int64_t>& samples) const {
  at::Tensor presence =
      at::empty({static_cast<int64_t>(samples.size()), static_cast<int64_t>(modalities_.size())}, at::kBool);
  bool* out = presence.mutable_data_ptr<bool>();
  for (const int64_t sample : samples)
    for (size_t m = 0; m < modalities_.size(); ++m) *out++ = length(static_cast<int64_t>(m), sample) > 0;
  return presence;
}

}  // namespace muster::batch
