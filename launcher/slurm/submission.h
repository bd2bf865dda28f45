#pragma once

#include <string>
#include <vector>

#include "launcher/slurm/batch_script.h"

namespace muster::launcher {

// The options of `muster submit`. What is empty or zero comes from the site's profile.
struct SubmitOptions : JobSettings {
  std::string job_name;
  std::string site;                  // name or file
  std::string template_file;         // empty: muster's own
  bool dry_run = false;              // print the script, write and submit nothing
  std::vector<std::string> command;  // train and its arguments
};

// Checks the experiment and its data as far as can be done without training, prepares the run directory (of an array:
// of each task), writes RUN/job.sbatch and RUN/submission.json, and submits the script. An unfinished run is continued.
// Throws Error(kUsage) when a run is finished, in use, or has a job in the queue already, and with sbatch's own message
// when it refuses; otherwise as train would.
void submit(const SubmitOptions& options);

// RUN/job.sbatch once more, for a job that cannot be requeued: of an array, only this process's task. Returns
// the new job's number, and writes it into submission.json. Throws Error(kUsage) when sbatch refuses.
std::string submit_again(const std::string& run_directory);

}  // namespace muster::launcher
