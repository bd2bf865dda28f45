#pragma once

#include <vector>

#include "launcher/doctor/check.h"
#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {

// One library of this job's software as this process has it loaded.
struct Version {
  std::string library, built_with, loaded;  // built_with: empty where the library does not tell
};
std::vector<Version> versions_here();

// "versions", "built_with", "duplicates", "preload", "library_path".
std::vector<Finding> check_libraries(const Machine& machine, const std::vector<Version>& versions);

}  // namespace muster::launcher::doctor
