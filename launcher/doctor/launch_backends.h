#pragma once

#include <functional>
#include <string>
#include <vector>

#include "launcher/doctor/check.h"
#include "launcher/doctor/process.h"

namespace muster::launcher::doctor {

// Runs a program and returns what it answers; ask(), or staged.
using Ask = std::function<Answer(const std::vector<std::string>&)>;

// "mpirun": whether it is the one of the MPI in this process. Empty path: there is none. needed: the job would be
// started by it.
Finding check_mpirun(const std::string& path, const std::string& mpi_library, bool needed, const Ask& ask);

// "srun": whether it offers PMIx, by which ranks of Open MPI find each other. needed: nothing else
// could start ranks.
Finding check_srun(const std::string& path, bool needed, const Ask& ask);

// What mpirun, ssh or a rank has said in `errors` about ranks that did not come, or did not come back: what it means
// and how to help. `command`: as a person would repeat it.
Finding explain_end(const ProcessEnd& end, bool met, const std::string& command);

// What job_command() refuses, as a finding.
Finding explain_refusal(const std::string& message);

}  // namespace muster::launcher::doctor
