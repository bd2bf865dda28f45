#pragma once

#include <optional>
#include <string>

namespace muster::run {

// From now on SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 ask this process to save and stop at the end of a step, instead of
// ending it. A second SIGINT (Ctrl-C) ends it at once. Any rank may be asked; all stop (see Boundary).
void catch_stop_signals();

// The last such signal; 0: none.
int stop_signal();

// "SIGTERM"; "signal 42" for others.
std::string name_of_signal(int signal);

// Seconds of "3h55m", "90s", "1d12h", "45" (minutes, as in Slurm) or "4:00:00" (hours, minutes, seconds). Nothing if it
// is none of them.
std::optional<double> parse_duration(const std::string& text);

}  // namespace muster::run
