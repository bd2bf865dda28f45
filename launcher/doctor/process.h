#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace muster::launcher::doctor {

struct ProcessEnd {
  int code = 0;              // exit code; 128 + signal when it was killed
  bool silent = false;       // it was ended because it said nothing for too long
  bool interrupted = false;  // ended because this process was asked to stop
  std::string errors;        // what it wrote to standard error, the last 64 KB
};

// From here on SIGINT, SIGTERM, SIGHUP and SIGPIPE (nobody reads the findings any more) do not end this process;
// is_stopped() tells of them.
void heed_stops();
bool is_stopped();

// Runs a program without input, and gives each line that it writes to standard output to `take`. When it has written
// nothing to it for `patience` seconds, or is_stopped(), it is ended: SIGTERM, after 3 s SIGKILL. On return it and all
// that it has started have ended. `environment` replaces, `removed` takes away. Throws Error(kIo) when no process can
// be started.
ProcessEnd run_process(const std::vector<std::string>& words, double patience,
                       const std::function<void(const std::string&)>& take,
                       const std::map<std::string, std::string>& environment = {},
                       const std::vector<std::string>& removed = {});

// The program's whole output, standard error first, for tools that answer at once; ended after 10 s.
struct Answer {
  int code;
  std::string text;
};
Answer ask(const std::vector<std::string>& words);

// The lines that matter of what mpirun, ssh and ranks have written, in one line of at most some 400 characters.
std::string summarize_stderr(const std::string& errors);

}  // namespace muster::launcher::doctor
