#include "launcher/doctor/doctor.h"

#include <cstdlib>
#include <memory>

#include "launcher/commands/commands.h"
#include "launcher/doctor/ranks.h"

namespace muster::launcher {

void add_doctor_command(CLI::App& parent) {
  struct Options : doctor::DoctorOptions {
    int as_rank = 0;
  };
  auto options = std::make_shared<Options>();
  auto* command = parent.add_subcommand("doctor", "Check and time the machines that a job would run on");
  add_start_options(*command, options->job, "the slots of the hosts, the tasks of the allocation, one per GPU, or two");
  command->add_option("--directory", options->directory, "Folder whose file system is tried (default: this one)");
  command->add_option("--timeout", options->timeout, "Seconds of silence after which ranks are given up (default: 60)")
      ->check(CLI::Range(0.001, 86400.0));
  command->add_flag("--json", options->json, "All findings as one JSON document");
  command->add_option("--as-rank", options->as_rank)->group("");  // what the ranks themselves run: their number
  command->footer(
      "Exit code 0: nothing is broken (warnings allowed); 1: something is. Example: muster doctor -n 2 --directory "
      "runs");
  command->callback([options] {
    if (options->as_rank > 0) return doctor::run_as_rank({options->as_rank, options->directory, options->timeout});
    if (const int code = doctor::examine(*options)) std::exit(code);
  });
}

}  // namespace muster::launcher
