#include "launcher/work/python.h"

#include <cstdlib>

namespace muster::launcher {

std::vector<std::string> python_command(std::initializer_list<std::string_view> texts) {
  const char* own = std::getenv("MUSTER_PYTHON");
  // -I: a module is never taken from the working directory, where somebody else may have put one.
  std::vector<std::string> command{own && *own ? own : MUSTER_PYTHON, "-I", "-u", "-c"};
  command.insert(command.end(), texts.begin(), texts.end());
  return command;
}

}  // namespace muster::launcher
