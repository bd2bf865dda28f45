#include "checkpoints/staging.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <sys/mman.h>

#include <cstring>
#include <unordered_set>

namespace muster::checkpoints {
namespace {

constexpr uintptr_t kHugePage = 2 << 20;

}  // namespace

void Staging::reserve(uint64_t size, bool pinned) {
  if (buffer_.defined() && static_cast<uint64_t>(buffer_.numel()) >= size && buffer_.is_pinned() == pinned) return;
  buffer_ = at::Tensor();
  buffer_ = at::empty({static_cast<int64_t>(size)}, at::TensorOptions(at::kByte).pinned_memory(pinned));
  if (pinned) return;
  char* const begin = static_cast<char*>(buffer_.mutable_data_ptr());
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(begin) + size) / kHugePage * kHugePage;
  // Fewer, larger pages are made and copied to faster. Where the system does not want to, nothing is lost.
  if (end > first) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
  for (uint64_t i = 0; i < size; i += 4096) begin[i] = 0;
}

std::vector<std::string_view> Staging::stage(const std::vector<const NamedTensor*>& tensors, const ShardLayout& layout,
                                             bool copy) {
  std::vector<at::Tensor> pieces;
  uint64_t to_copy = 0;
  bool pinned = false;
  const auto stays = [&](const at::Tensor& rows) { return !copy && rows.is_cpu() && rows.is_contiguous(); };
  for (const Piece& piece : layout.pieces) {
    const at::Tensor tensor = tensors[piece.tensor]->tensor.detach();
    pieces.push_back(tensor.dim() == 0 ? tensor : tensor.narrow(0, piece.first_row, piece.rows));
    pinned = pinned || tensor.is_cuda();
    if (!stays(pieces.back())) to_copy += pieces.back().nbytes();
  }
  reserve(to_copy, pinned);

  std::vector<std::string_view> contents{layout.head};
  uint64_t used = 0;
  std::unordered_set<c10::Device> devices;
  for (const at::Tensor& rows : pieces) {
    if (rows.numel() == 0) continue;
    if (stays(rows)) {
      contents.emplace_back(static_cast<const char*>(rows.const_data_ptr()), rows.nbytes());
      continue;
    }
    // Pieces come by falling element size, so that each is aligned.
    const at::Tensor place =
        buffer_.narrow(0, static_cast<int64_t>(used), static_cast<int64_t>(rows.nbytes())).view(rows.scalar_type());
    if (rows.is_cpu() && rows.is_contiguous()) {
      std::memcpy(place.mutable_data_ptr(), rows.const_data_ptr(), rows.nbytes());
    } else {
      place.view(rows.sizes()).copy_(rows, /*non_blocking=*/true);
      if (!rows.is_cpu()) devices.insert(rows.device());
    }
    contents.emplace_back(static_cast<const char*>(place.const_data_ptr()), rows.nbytes());
    used += rows.nbytes();
  }
  for (const c10::Device device : devices) c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
  return contents;
}

}  // namespace muster::checkpoints
