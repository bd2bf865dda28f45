#include "launcher/doctor/ranks.h"

#include <unistd.h>

#include <cstdio>
#include <set>

#include "base/host.h"
#include "distributed/cuda_devices.h"
#include "distributed/nccl.h"
#include "distributed/watchdog.h"
#include "launcher/doctor/clock.h"
#include "launcher/doctor/files.h"
#include "launcher/doctor/gpu.h"
#include "launcher/doctor/libraries.h"
#include "launcher/doctor/limits.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/speed.h"

namespace muster::launcher::doctor {
namespace {

using distributed::Communicator;
const std::string kMark = "muster-doctor: ";

void say(const nlohmann::json& what) {
  std::printf("%s%s\n", kMark.c_str(), what.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

// Ranks that run other software than rank 0 would compute something else, or fail in the middle.
Finding compare_versions(const std::vector<nlohmann::json>& versions, const std::vector<std::string>& hosts) {
  Finding finding{"same_software",
                  State::kOk,
                  "the same versions on all ranks",
                  "the same muster and libraries on every rank",
                  "",
                  "",
                  -1,
                  {}};
  for (size_t rank = 1; rank < versions.size(); ++rank)
    for (const auto& [library, version] : versions[rank].items())
      if (version != versions[0].value(library, nlohmann::json())) {
        finding.state = library == "glibc" ? std::max(finding.state, State::kWarning) : State::kFailed;
        finding.rank = static_cast<int>(rank);
        finding.host = hosts[rank];
        finding.found = library + " " + version.dump() + ", but " +
                        versions[0].value(library, nlohmann::json()).dump() + " on rank 0";
        finding.fix =
            "install muster on a file system that all machines share, or the same release on each; load the same "
            "modules";
      }
  return finding;
}

void check_machines(Communicator& communicator, const std::vector<std::string>& hosts, bool several_hosts,
                    const Report& report) {
  const auto answers = each_rank(communicator, [&] {
    const Machine machine = detect_machine();
    auto findings = check_libraries(machine, versions_here());
    for (auto& finding : check_limits(machine, several_hosts)) findings.push_back(finding);
    for (auto& finding : check_gpus(machine, !distributed::nccl_version().empty(), distributed::visible_gpus()))
      findings.push_back(finding);
    nlohmann::json list = nlohmann::json::array();
    for (auto& finding : findings) {
      finding.rank = communicator.rank();
      list.push_back(to_json(finding));
    }
    return list;
  });
  std::vector<nlohmann::json> versions;
  for (const auto& list : answers) {
    if (!list.is_array()) continue;
    for (const auto& json : list) {
      report(finding_of(json));
      if (json["check"] == "versions") versions.push_back(json["figures"]);
    }
  }
  if (const auto error = first_error(answers, hosts); !error.empty())
    report({"machine", State::kFailed, error, "", "report this with the output of muster doctor --json", "", -1, {}});
  else if (answers.size() > 1)
    report(compare_versions(versions, hosts));
}

}  // namespace

std::vector<nlohmann::json> each_rank(Communicator& communicator, const std::function<nlohmann::json()>& work) {
  nlohmann::json own;
  try {
    own = work();
  } catch (const std::exception& error) {
    own = {{"error", error.what()}};
  }
  std::vector<nlohmann::json> answers;
  for (const auto& text :
       communicator.all_gather_bytes(own.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)))
    answers.push_back(nlohmann::json::parse(text));
  return answers;
}

std::string first_error(const std::vector<nlohmann::json>& answers, const std::vector<std::string>& hosts) {
  for (size_t rank = 0; rank < answers.size(); ++rank)
    if (answers[rank].is_object() && answers[rank].contains("error"))
      return (answers.size() > 1 ? "rank " + std::to_string(rank) + " on " + hosts[rank] + ": " : "") +
             answers[rank]["error"].get<std::string>();
  return "";
}

nlohmann::json parse_line(const std::string& line) {
  const size_t start = line.find(kMark);
  return start == std::string::npos ? nlohmann::json()
                                    : nlohmann::json::parse(line.substr(start + kMark.size()), nullptr, false);
}

void run_as_rank(const RankOptions& options) {
  const auto communicator = distributed::connect();
  distributed::set_deadlines({options.timeout, options.timeout, options.timeout, options.timeout});
  if (communicator->size() != options.expected_ranks)
    throw Error(ExitCode::kPeerFailed, std::to_string(options.expected_ranks) +
                                           " ranks were started, but this one sees " +
                                           std::to_string(communicator->size()) +
                                           ": mpirun belongs to another MPI than the one that muster was built with (" +
                                           distributed::mpi_library_version() + ")");
  const auto hosts = communicator->all_gather_bytes(host_name());
  const size_t machines = std::set<std::string>(hosts.begin(), hosts.end()).size();
  const bool first = communicator->rank() == 0;
  const Report report = [first](const Finding& finding) {
    if (first) say({{"finding", to_json(finding)}});
  };
  if (first) say({{"ranks", communicator->size()}, {"hosts", machines}});
  check_machines(*communicator, hosts, machines > 1, report);
  check_clocks(*communicator, hosts, report);
  check_all_reduce(*communicator, machines, report);
  check_gpu_all_reduce(*communicator, machines, report);
  check_files(*communicator, hosts, options.folder, report);
  if (first) say({{"done", true}});
}

}  // namespace muster::launcher::doctor
