#pragma once

#include <string>

namespace muster::run {

// From now on SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 ask this process to stop. Until save_on_stop() there is nothing to
// save, and what is under way (a slow file system, a large data set) may take long, so the process ends at once: by
// SIGTERM and SIGINT as any other, by SIGUSR1 and SIGUSR2, with which schedulers ask for a stop, with exit code 75.
void catch_stop_signals();

// From now on they ask it to save and stop at the end of a step. A second SIGINT (Ctrl-C) ends it at once. Any rank may
// be asked; all stop (Checkpointing::between_steps()).
void save_on_stop();

// The last such signal; 0: none.
int stop_signal();

// What asks this process, a rank of `ranks`, to stop: "SIGTERM", of several "SIGTERM (rank 2)"; empty: nothing.
std::string stop_request(int rank, int ranks);

// "SIGTERM"; "signal 42" for others.
std::string name_of_signal(int signal);

}  // namespace muster::run
