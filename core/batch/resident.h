#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "core/batch/ragged.h"
#include "core/config/experiment.pb.h"

namespace muster::batch {

using Residency = config::Training::DataOnDevice;

// Free memory of a GPU, in bytes.
int64_t free_device_memory(c10::Device device);

// Whether the frames of a whole dataset are kept in GPU memory: `bytes` of frames per rank, `ranks` ranks that will
// each take as much of `free_bytes`. WHEN_IT_FITS leaves half of what is free to the model, its graphs and other users.
// Throws Error(kBadConfig) when ALWAYS cannot be.
bool keep_resident(Residency wanted, int64_t bytes, int64_t free_bytes, int ranks);

// All frames of some modalities on one device, in the form that batches have.
class ResidentFrames {
 public:
  struct Table {
    int64_t frames;
    int64_t dim;
    at::ScalarType dtype;
  };
  // `read(position, first, count)` returns frames [first, first + count) of the modality at `position`, ready for
  // batches, on the device. Returns when everything is there, so that any stream may read it.
  ResidentFrames(const std::vector<Table>& tables, at::TensorOptions options,
                 const std::function<at::Tensor(int64_t position, int64_t first, int64_t count)>& read);

  // Rows [first_rows[i], first_rows[i] + length i of offsets), one sample after another: [offsets.back(), dim], on the
  // current stream; the host does not wait.
  at::Tensor gather(int64_t position, const std::vector<int64_t>& first_rows,
                    const std::vector<int64_t>& offsets) const;

 private:
  std::vector<at::Tensor> tables_;
};

}  // namespace muster::batch
