#pragma once

#include <map>
#include <string>
#include <vector>

namespace muster::launcher {

struct ChildEnd {
  int code = 0;               // exit code; 128 + signal when it was killed
  bool told_to_stop = false;  // this process was asked to stop while the child ran
};

enum class Stream { kOutput = 1, kError = 2 };

// Gets what a child writes.
class OutputReader {
 public:
  virtual ~OutputReader() = default;
  virtual void take(Stream stream, const std::string& bytes) = 0;
  // Is called a few times per second.
  virtual void idle() {}
};

// What a child gets in another way than this process has it.
struct ChildSettings {
  std::map<std::string, std::string> environment;  // set
  std::vector<std::string> removed;                // taken out of its environment
  OutputReader* output = nullptr;  // gets all that it writes; null: it has this process's standard streams
  // Whether only SIGINT, several times within a second, ends it: srun, which hands on SIGTERM to ranks and goes on
  // waiting for them.
  bool ends_by_interrupts = false;
};

// Runs `words` as a child; its input is this process's, unless that is a terminal, which background processes cannot
// read. Returns when it and everything that it has started have ended, and all that they wrote was taken; what outlives
// it is killed after 5 s. If this process dies, the child gets SIGTERM. With an output reader, SIGPIPE is ignored from
// here on.
//
// Whoever asks this process to stop, by SIGTERM, SIGINT, SIGUSR1, SIGUSR2 or SIGHUP, asks the child by SIGUSR2, which
// mpirun hands to all ranks: save and stop. (From SIGTERM itself mpirun kills ranks two seconds later.) A second
// SIGTERM or SIGINT ends the child by SIGTERM (or SIGINTs). The child is not in the terminal's process group: Ctrl-C
// reaches it through this process only. Throws Error(kIo) when no process can be started.
ChildEnd run_child(const std::vector<std::string>& words, const ChildSettings& settings);

}  // namespace muster::launcher
