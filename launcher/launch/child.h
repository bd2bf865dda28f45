#pragma once

#include <map>
#include <string>
#include <vector>

namespace muster::launcher {

struct ChildEnd {
  int code = 0;              // exit code; 128 + signal when it was killed
  bool told_to_stop = false;  // this process was asked to stop while the child ran
};

// Runs `words` as a child with this process's standard streams (a terminal as input excepted, which background processes cannot read),
// and `environment` added where the user has not set it. Returns when it and everything that it has started have ended; what
// outlives it is killed after 5 s. If this process dies, the child gets SIGTERM.
//
// Whoever asks this process to stop, by SIGTERM, SIGINT, SIGUSR1, SIGUSR2 or SIGHUP, asks the child by SIGUSR2, which mpirun hands to all ranks:
// save and stop. (From SIGTERM itself mpirun kills ranks two seconds later.) A second SIGTERM or SIGINT ends the child by SIGTERM.
// The child is not in the terminal's process group: Ctrl-C reaches it through this process only. Throws Error(kIo) when no process can be started.
ChildEnd run_child(const std::vector<std::string>& words, const std::map<std::string, std::string>& environment);

}  // namespace muster::launcher
