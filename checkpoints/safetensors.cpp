#include "checkpoints/safetensors.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "base/atomic_file.h"
#include "base/input_file.h"
#include "checkpoints/safetensors_header.h"
#include "base/error.h"

namespace muster::checkpoints {


#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors and fingerprints are little-endian; this machine would need byte swapping"
#endif

namespace {

void check_storable(const NamedTensor& item) {
  if (!item.tensor.defined()) throw std::invalid_argument("tensor " + item.name + " is undefined");
  if (item.tensor.layout() != at::kStrided) throw std::invalid_argument("tensor " + item.name + " is sparse");
  if (item.name == "__metadata__") throw std::invalid_argument("a tensor cannot be named __metadata__");
  safetensors_dtype(item.tensor.scalar_type());
}

std::vector<const NamedTensor*> file_order(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& item : tensors) {
    check_storable(item);
    order.push_back(&item);
  }
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return comes_first(a->tensor.scalar_type(), a->name, b->tensor.scalar_type(), b->name);
  });
  return order;
}

SafetensorsHeader header_for(const std::vector<const NamedTensor*>& order,
                             const std::map<std::string, std::string>& metadata) {
  SafetensorsHeader header;
  header.metadata = metadata;
  uint64_t position = 0;
  for (const NamedTensor* item : order) {
    const uint64_t end = position + item->tensor.numel() * item->tensor.element_size();
    SafetensorsHeader::Entry entry{item->tensor.scalar_type(), item->tensor.sizes().vec(), position, end};
    if (!header.tensors.emplace(item->name, std::move(entry)).second) {
      throw std::invalid_argument("two tensors are named " + item->name);
    }
    position = end;
  }
  return header;
}

std::string length_prefix(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

struct Layout {
  std::vector<const NamedTensor*> order;
  std::string header;
  uint64_t data_size = 0;
};

Layout lay_out(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
  Layout layout;
  layout.order = file_order(tensors);
  std::vector<std::string> names;
  for (const NamedTensor* item : layout.order) {
    names.push_back(item->name);
    layout.data_size += item->tensor.numel() * item->tensor.element_size();
  }
  layout.header = format_safetensors_header(header_for(layout.order, metadata), names);
  return layout;
}

void emit(const Layout& layout, const std::function<void(std::string_view)>& sink) {
  sink(length_prefix(layout.header.size()));
  sink(layout.header);
  for (const NamedTensor* item : layout.order) {
    if (item->tensor.numel() == 0) continue;
    const at::Tensor plain = item->tensor.detach().to(at::kCPU).contiguous();
    sink(std::string_view(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()));
  }
}

}  // namespace

bool holds_booleans(const void* bytes, uint64_t count) {
  const auto* first = static_cast<const unsigned char*>(bytes);
  return std::all_of(first, first + count, [](unsigned char byte) { return byte <= 1; });
}

void serialize_safetensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata,
                           const std::function<void(std::string_view)>& sink) {
  emit(lay_out(tensors, metadata), sink);
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const Layout layout = lay_out(tensors, metadata);
  AtomicFile file(path, 8 + layout.header.size() + layout.data_size);
  emit(layout, [&](std::string_view bytes) { file.write(bytes); });
  file.commit();
}

SafetensorsFile read_safetensors(const std::string& path) {
  InputFile input(path);
  const auto refuse = [&](const std::string& problem) {
    throw Error(ExitCode::kBadData, path + " is not a valid safetensors file: " + problem + ".");
  };
  uint64_t header_size = 0;
  if (input.size() < 8) refuse("it has " + std::to_string(input.size()) + " bytes, not even a header length");
  input.read(0, &header_size, 8);
  if (header_size > kLongestSafetensorsHeader) {
    refuse("its header would have " + std::to_string(header_size) + " bytes; the format allows 100,000,000");
  }
  if (header_size > input.size() - 8) {
    refuse("its header should have " + std::to_string(header_size) + " bytes, but the file has only " +
           std::to_string(input.size()) + ": is it cut short?");
  }
  std::string json(header_size, '\0');
  input.read(8, json.data(), header_size);
  const uint64_t data_begin = 8 + header_size;
  SafetensorsHeader header = parse_safetensors_header(json, input.size() - data_begin, path);

  SafetensorsFile file;
  file.metadata = std::move(header.metadata);
  for (const auto& [name, entry] : header.tensors) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.dtype));
    if (entry.end > entry.begin)
      input.read(data_begin + entry.begin, tensor.mutable_data_ptr(), entry.end - entry.begin);
    if (entry.dtype == at::kBool && !holds_booleans(tensor.const_data_ptr(), entry.end - entry.begin)) {
      refuse("tensor \"" + name + "\": a BOOL byte is neither 0 nor 1");
    }
    file.tensors.emplace(name, std::move(tensor));
  }
  return file;
}

}  // namespace muster::checkpoints
