#include "launcher/work/python.h"

#include <cstdlib>

namespace muster::launcher {

std::string python_program() {
  const char* own = std::getenv("MUSTER_PYTHON");
  return own && *own ? own : MUSTER_PYTHON;
}

}  // namespace muster::launcher
