#pragma once

#include <string>

namespace muster::run {

// From now on SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 ask this process to save and stop at the end of a step, instead of
// ending it. A second SIGINT (Ctrl-C) ends it at once. Any rank may be asked; all stop
// (Checkpointing::between_steps()).
void catch_stop_signals();

// The last such signal; 0: none.
int stop_signal();

// "SIGTERM"; "signal 42" for others.
std::string name_of_signal(int signal);

}  // namespace muster::run
