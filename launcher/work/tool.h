#pragma once

#include <string>
#include <vector>

namespace muster::launcher {

struct ToolEnd {
  int code = 0;        // exit code; 127: there is no such program on the PATH
  std::string said;    // standard output; standard error too, where the program failed
  std::string errors;  // standard error
};

// Runs a program from the PATH (sbatch, squeue, scontrol) or at a path, and waits for it. input: what it reads from
// standard input, if not empty. Throws Error(kIo) when no process can be started.
ToolEnd run_tool(const std::vector<std::string>& words, const std::string& input = "");

}  // namespace muster::launcher
