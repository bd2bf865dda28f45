#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace muster::distributed {
class Communicator;
}

namespace muster::launcher {

// One function per subcommand; each adds it to the program. The work runs inside app.parse() and throws Error when it
// fails.
void add_train_command(CLI::App& parent);
void add_resume_command(CLI::App& parent);
void add_evaluate_command(CLI::App& parent);
void add_predict_command(CLI::App& parent);
void add_config_command(CLI::App& parent);
void add_data_command(CLI::App& parent);
// What the programs in importers/ do, as further commands of `data`, which must be there.
void add_importer_commands(CLI::App& parent);
// Of `data`, which must be there; apart from the others because it computes.
void add_encode_command(CLI::App& parent);
void add_checkpoints_command(CLI::App& parent);
void add_encoders_command(CLI::App& parent);
void add_launch_command(CLI::App& parent);
void add_submit_command(CLI::App& parent);
void add_requeue_command(CLI::App& parent);
void add_status_command(CLI::App& parent);
void add_doctor_command(CLI::App& parent);
void add_search_command(CLI::App& parent);
void add_study_command(CLI::App& parent);

// Connects this process to its job and runs `work` in it. A SharedError ends every rank in good order with its exit
// code. Any other error on one rank of several prints a message with the rank's number and aborts the whole job,
// because the other ranks wait for this one in a collective.
void run_job(const std::function<void(distributed::Communicator&)>& work);

}  // namespace muster::launcher
