#pragma once

#include <string>

namespace muster::launcher {

// The Python that has what requirements.txt lists: the one that muster was built with, or MUSTER_PYTHON from the
// environment.
std::string python_program();

}  // namespace muster::launcher
