#include "core/batch/resident.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "core/kernels/upload.h"

namespace muster::batch {
namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;

}  // namespace

int64_t free_device_memory(c10::Device device) {
  return static_cast<int64_t>(at::accelerator::getMemoryInfo(device.index()).first);
}

bool keep_resident(Residency wanted, int64_t bytes, int64_t free_bytes, int ranks) {
  if (wanted == config::Training::NEVER) return false;
  const int64_t needed = bytes * ranks;
  if (wanted != config::Training::ALWAYS) return needed <= free_bytes / 2;
  if (needed > free_bytes)
    throw Error(ExitCode::kBadConfig,
                fmt::format("training.data_on_device: ALWAYS needs {} of GPU memory{}, but only {} are free; use "
                            "WHEN_IT_FITS or NEVER",
                            size_text(static_cast<double>(needed)),
                            ranks > 1 ? fmt::format(" ({} ranks share the GPU)", ranks) : "",
                            size_text(static_cast<double>(free_bytes))));
  return true;
}

ResidentFrames::ResidentFrames(const std::vector<Table>& tables, at::TensorOptions options,
                               const std::function<at::Tensor(int64_t, int64_t, int64_t)>& read) {
  for (size_t position = 0; position < tables.size(); ++position) {
    const auto [frames, dim, dtype] = tables[position];
    tables_.push_back(at::empty({frames, dim}, options.dtype(dtype)));
    const int64_t chunk =
        std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, dim * static_cast<int64_t>(sizeof(float))));
    for (int64_t first = 0; first < frames; first += chunk) {
      const int64_t count = std::min(chunk, frames - first);
      tables_.back().narrow(0, first, count).copy_(read(static_cast<int64_t>(position), first, count));
    }
  }
  if (options.device().is_cpu()) return;
  const c10::impl::VirtualGuardImpl device(options.device().type());
  device.synchronizeStream(device.getStream(options.device()));
}

at::Tensor ResidentFrames::gather(int64_t position, const std::vector<int64_t>& first_rows,
                                  const std::vector<int64_t>& offsets) const {
  const at::Tensor& table = tables_[position];
  // Row i of the result is row i + shift of the table, with one shift per sample.
  std::vector<int64_t> shifts_and_lengths(2 * first_rows.size());
  for (size_t s = 0; s < first_rows.size(); ++s) {
    shifts_and_lengths[s] = first_rows[s] - offsets[s];
    shifts_and_lengths[first_rows.size() + s] = offsets[s + 1] - offsets[s];
  }
  const auto uploaded =
      kernels::upload(shifts_and_lengths, table.device()).view({2, static_cast<int64_t>(first_rows.size())});
  const at::Tensor rows =
      at::arange(offsets.back(), uploaded.options()) + uploaded[0].repeat_interleave(uploaded[1], 0, offsets.back());
  return table.index_select(0, rows);
}

}  // namespace muster::batch
