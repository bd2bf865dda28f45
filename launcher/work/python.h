#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace muster::launcher {

// How to run a Python program from its text (the first; the others are its arguments), by the Python that has what
// requirements.txt lists: the one that muster was built with, or MUSTER_PYTHON from the environment.
std::vector<std::string> python_command(std::initializer_list<std::string_view> texts);

// Becomes the program importers/<script>.py, run by the same Python, which does not come back: its messages, exit code
// and signals are those of this process. command: what a person calls it, "muster data merge". Throws Error(kUsage)
// when it cannot be run.
[[noreturn]] void become_importer(const std::string& script, const std::string& command,
                                  const std::vector<std::string>& arguments);

// For messages when that fails.
constexpr const char* kPythonHint = "./setup.sh sets Python up; MUSTER_PYTHON names another one";

}  // namespace muster::launcher
