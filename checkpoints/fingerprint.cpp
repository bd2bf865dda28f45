#include "checkpoints/fingerprint.h"

#include <fmt/format.h>

#include <stdexcept>
#include <string_view>

#include "base/error.h"
#include "base/sha256.h"
#include "base/text.h"
#include "checkpoints/safetensors.h"

namespace muster::checkpoints {

std::string fingerprint(const std::vector<NamedTensor>& tensors) {
  const std::vector<const NamedTensor*> order = by_name(tensors);
  Sha256 hash;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto& [name, tensor] = *order[i];
    require_storable(*order[i]);
    if (i > 0 && order[i - 1]->name == name) throw std::invalid_argument(fmt::format("two tensors are named {}", name));
    if (name.find('\n') != std::string::npos) {
      throw Error(
          ExitCode::kBadData,
          fmt::format("The name of a tensor has a line break ({}): such models have no fingerprint.", in_quotes(name)));
    }
    hash.update(fmt::format("{} {} [{}]\n", name, safetensors_dtype(tensor.scalar_type()),
                            fmt::join(tensor.sizes().vec(), ",")));
    if (tensor.numel() == 0) continue;
    const at::Tensor plain = tensor.detach().to(at::kCPU).contiguous();
    hash.update(std::string_view(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()));
  }
  return hash.hex();
}

std::string fingerprint(const SafetensorsFile& file) {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : file.tensors) tensors.push_back({name, tensor});
  return fingerprint(tensors);
}

}  // namespace muster::checkpoints
