#pragma once

#include <CLI/CLI.hpp>

namespace muster::launcher {

// Adds `data` with the subcommands inspect, verify and synth to the program. They run inside app.parse(), print to
// stdout and throw Error when they fail.
void add_data_command(CLI::App& parent);

}  // namespace muster::launcher
