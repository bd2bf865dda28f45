#pragma once

#include <string>
#include <vector>

#include "distributed/fault_message.h"

namespace muster::distributed {

// What a process knows when its watchdog ends it.
struct LastWords {
  int rank = 0;
  int size = 1;
  std::string host;
  std::vector<int> missing;
  std::string text;           // what has happened; the same on all ranks
  bool speaks = false;        // this rank tells it, for the whole job
  int speakers_process = -1;  // pidfd of the rank that does; -1: on another machine
  RankStatus status;
};

// Prints the message if it is for this rank to do, writes the flight record, runs the abort hooks, and ends the process
// with exit code 76: after 3 s at the latest, whatever hangs.
[[noreturn]] void end_process(const LastWords& words);

}  // namespace muster::distributed
