#pragma once

#include <CLI/CLI.hpp>

#include "launcher/commands/data.h"

// One function per subcommand; each adds it to the program. The work runs inside app.parse() and throws
// Error when it fails.
namespace muster::launcher {

void add_train_command(CLI::App& parent);
void add_resume_command(CLI::App& parent);
void add_evaluate_command(CLI::App& parent);
void add_predict_command(CLI::App& parent);
void add_config_command(CLI::App& parent);
void add_checkpoints_command(CLI::App& parent);
void add_launch_command(CLI::App& parent);
void add_submit_command(CLI::App& parent);
void add_requeue_command(CLI::App& parent);
void add_status_command(CLI::App& parent);
void add_doctor_command(CLI::App& parent);
void add_search_command(CLI::App& parent);
void add_study_command(CLI::App& parent);

}  // namespace muster::launcher
