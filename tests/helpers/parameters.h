#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/models/parameters.h"

namespace muster::models {

// Every parameter with a copy of its values on the CPU, sorted by name.
inline std::vector<std::pair<std::string, at::Tensor>> copies_of(const Parameters& parameters) {
  auto copies = parameters.parts_of(parameters.values());
  for (auto& [name, part] : copies) part = part.detach().cpu().clone();
  return copies;
}

}  // namespace muster::models
