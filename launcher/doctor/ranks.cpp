#include "launcher/doctor/ranks.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>

#include "base/host.h"
#include "base/text.h"
#include "core/training/compute.h"
#include "distributed/device.h"
#include "distributed/nccl.h"
#include "distributed/watchdog.h"
#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {
namespace {

using nlohmann::json;

const std::string kMark = "muster-doctor: ";

std::string one_line(const json& document) { return document.dump(-1, ' ', true, json::error_handler_t::replace); }

void check_machine(Ranks& ranks, Finding&) {
  const auto answers = ranks.gather([&] {
    json list = json::array();
    const Machine machine = detect_machine(ranks.machines > 1);
    run_checks(kMachineChecks, machine, [&](Finding finding) {
      ranks.blame(finding, ranks.communicator.rank());
      list.push_back(finding);
    });
    return list;
  });
  for (const auto& findings : answers)
    for (const auto& finding : findings) ranks.report(finding);
}

// Ranks with other software than rank 0 would compute something else, or fail in the middle of a run.
void check_same_software(Ranks& ranks, Finding& finding) {
  if (ranks.hosts.size() == 1) return;
  const auto versions = ranks.gather([] {
    json loaded;
    for (const auto& each : loaded_versions()) loaded[each.library] = each.loaded;
    return loaded;
  });
  finding.found = "the same versions on all ranks";
  for (size_t rank = 1; rank < versions.size(); ++rank)
    for (const auto& [library, version] : versions[rank].items()) {
      const json first = versions[0].value(library, json());
      if (version == first) continue;
      finding.state = library == "glibc" ? std::max(finding.state, State::kWarning) : State::kFailed;
      ranks.blame(finding, rank);
      finding.found = fmt::format("{} {}, but {} on rank 0", library, version.dump(), first.dump());
      finding.fix =
          "install muster on a file system that all machines share, or the same release on each; load the same modules";
    }
}

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// All ranks gather several times, and each notes its clock before and after. No rank leaves a gathering before all have
// entered it, which bounds how far a clock is ahead of rank 0's from both sides.
void check_clock(Ranks& ranks, Finding& finding) {
  if (ranks.is_alone(finding)) return;
  std::vector<double> entered, left;
  for (int i = 0; i < 40; ++i) {
    entered.push_back(seconds_since_1970());
    ranks.communicator.all_gather_bytes("");
    left.push_back(seconds_since_1970());
  }
  const auto stamps = ranks.gather([&] { return json{{"entered", entered}, {"left", left}}; });
  double worst = 0, resolution = 0;
  size_t worst_rank = 0;
  for (size_t rank = 1; rank < stamps.size(); ++rank) {
    double lowest = -1e300, highest = 1e300;
    for (size_t i = 0; i < entered.size(); ++i) {
      lowest = std::max(lowest, stamps[rank]["entered"][i].get<double>() - stamps[0]["left"][i].get<double>());
      highest = std::min(highest, stamps[rank]["left"][i].get<double>() - stamps[0]["entered"][i].get<double>());
    }
    const double certain = lowest > 0 ? lowest : std::min(highest, 0.0);  // the least that it can be
    resolution = std::max(resolution, highest - lowest);
    if (std::abs(certain) > std::abs(worst)) worst = certain, worst_rank = rank;
  }
  finding.figures = {{"offset_seconds", worst}, {"resolution_seconds", resolution}};
  finding.found = fmt::format("all ranks within {} of rank 0", seconds_text(std::max(std::abs(worst), resolution)));
  if (std::abs(worst) <= 1) return;
  ranks.blame(finding, worst_rank);
  finding.found = fmt::format("{} {} rank 0's", seconds_text(std::abs(worst)), worst > 0 ? "ahead of" : "behind");
  finding.warn(
      "run a time service on every machine (chronyd; chronyc makestep sets the clock at once): logs mix up times, and "
      "beyond 5 minutes Slurm's messages are refused");
  if (std::abs(worst) > 300) finding.state = State::kFailed;  // munge refuses messages that are 300 s old
}

// The median time of one sum over all ranks, in seconds, and whether every element had the right value.
std::pair<double, bool> time_sum(distributed::Communicator& communicator, c10::Device device, int64_t floats,
                                 double most_repeats) {
  const auto tensor = at::empty({floats}, at::TensorOptions().dtype(at::kFloat).device(device));
  const auto once = [&] {
    tensor.fill_(static_cast<float>(communicator.rank() + 1));
    tensor.slice(0, 0, 1).cpu();  // waits for the GPU
    communicator.all_gather_bytes("");
    const auto start = Clock::now();
    communicator.all_reduce_sum(tensor);
    tensor.slice(0, 0, 1).cpu();
    return seconds_since(start);
  };
  once();
  // Rank 0 decides how often, so that all do the same.
  const auto count =
      at::tensor({static_cast<int64_t>(std::clamp(0.6 / std::max(once(), 1e-7), 3.0, most_repeats))}, at::kLong);
  communicator.broadcast(count, 0);
  std::vector<double> seconds;
  for (int64_t i = 0; i < count.item<int64_t>(); ++i) seconds.push_back(once());
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size()) / 2, seconds.end());
  const double sum = 0.5 * communicator.size() * (communicator.size() + 1);
  return {seconds[seconds.size() / 2], (tensor - sum).abs().max().item<double>() <= 1e-6 * sum};
}

// Judges only orders of magnitude; docs/doctor.md lists usual values.
template <int64_t floats, int most_repeats>
void check_sum(Ranks& ranks, Finding& finding) {
  auto& communicator = ranks.gpus ? *ranks.gpus : ranks.communicator;
  const auto [seconds, own_right] = time_sum(communicator, ranks.gpu, floats, most_repeats);
  const auto all_right = ranks.gather([right = own_right] { return json(right); });
  const auto size = communicator.size();
  const double bytes = 4.0 * floats, bandwidth = bytes / seconds * 2 * (size - 1) / size;
  finding.figures = {{"bytes", bytes},
                     {"seconds", seconds},
                     {"bytes_per_second", bandwidth},
                     {"ranks", size},
                     {"machines", ranks.machines}};
  finding.found = seconds_text(seconds);
  if (bytes > 8) finding.found += fmt::format(", {}/s each way per rank", size_text(bandwidth));
  const bool spread = ranks.machines > 1;
  const double slowest = spread ? 5e-3 : 1e-3, least = spread ? 50e6 : ranks.gpus ? 1e9 : 200e6;
  const char* link = spread       ? "between machines (half of what 1 Gbit/s Ethernet gives)"
                     : ranks.gpus ? "between the GPUs of one machine"
                                  : "within one machine, through its memory";
  if (const auto wrong = std::find(all_right.begin(), all_right.end(), json(false)); wrong != all_right.end()) {
    finding.found = fmt::format("the sum over ranks is wrong on rank {}", wrong - all_right.begin());
    finding.expected = fmt::format("1 + 2 + ... + {} in every place", size);
    finding.fail(
        "do not train with this MPI: try another transport (mpirun --mca btl tcp,self), tell the administrator");
  } else if (bytes == 8 && !ranks.gpus && communicator.local_size() > training::usable_cores()) {
    finding.found += " (more ranks than cores: not judged)";
  } else if (bytes == 8 && seconds > slowest) {
    finding.expected = fmt::format("below {} {}", seconds_text(slowest), link);
    finding.warn("see \"load\" and \"cores\"; between machines, the network of MPI (mpirun --mca btl_base_verbose 30)");
  } else if (bytes == 64e6 && bandwidth < least) {
    finding.expected = fmt::format("above {}/s {}", size_text(least), link);
    finding.warn(spread ? "see which network MPI uses, and choose the fast one: mpirun --mca btl_tcp_if_include eth0 "
                          "(GPUs: NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO)"
                        : "see \"load\", \"cores\" and \"shared_memory\" above");
  }
}

void check_nccl(Ranks& ranks, Finding& finding) {
  if (ranks.is_alone(finding)) return;
  const auto gpus = ranks.gather([] { return json(distributed::visible_gpus().gpus.size()); });
  if (std::count(gpus.begin(), gpus.end(), json(0)) == ranks.communicator.size())
    return finding.skip("no rank sees a GPU");
  finding.found = fmt::format("NCCL {} connects all ranks", distributed::nccl_version());
  try {
    ranks.gpu = distributed::bind_device(ranks.communicator, {}).device;
    const auto start = Clock::now();
    ranks.gpus = distributed::make_nccl_communicator(ranks.communicator, ranks.gpu);
    finding.figures["start_seconds"] = seconds_since(start);
  } catch (const SharedError& error) {
    throw Failure(
        error.what(),
        "NCCL_DEBUG=INFO muster doctor shows what NCCL tries; one rank per GPU (-n), and /dev/shm large enough");
  }
}

const std::vector<Check<Ranks>> kRankChecks = {
    {"machine", "", check_machine},
    {"same_software", "the same muster and libraries on every rank", check_same_software},
    {"clock", "within 1 s of rank 0's clock", check_clock},
    {"all_reduce", "", [](Ranks& ranks, Finding& finding) { ranks.is_alone(finding); }},
    {"all_reduce_8B", "", check_sum<2, 300>, "all_reduce"},
    {"all_reduce_1MB", "", check_sum<250000, 50>, "all_reduce"},
    {"all_reduce_64MB", "", check_sum<16000000, 5>, "all_reduce"},
    {"nccl", "a GPU for every rank, connected by NCCL", check_nccl},
    {"gpu_all_reduce_8B", "", check_sum<2, 300>, "nccl"},
    {"gpu_all_reduce_1MB", "", check_sum<250000, 50>, "nccl"},
    {"gpu_all_reduce_64MB", "", check_sum<16000000, 5>, "nccl"},
};

}  // namespace

bool Ranks::is_alone(Finding& finding) const {
  if (communicator.size() == 1) finding.skip("one rank alone");
  return communicator.size() == 1;
}

void Ranks::blame(Finding& finding, size_t rank) const {
  finding.rank = static_cast<int>(rank);
  finding.host = hosts[rank];
}

std::vector<json> Ranks::gather(const std::function<json()>& work, const std::string& fix) {
  json own;
  try {
    own = work();
  } catch (const std::exception& error) {
    own = {{"error", error.what()}};
  }
  std::vector<json> answers;
  for (const auto& text : communicator.all_gather_bytes(one_line(own))) answers.push_back(json::parse(text));
  for (size_t rank = 0; rank < answers.size(); ++rank) {
    if (!answers[rank].is_object() || !answers[rank].contains("error")) continue;
    std::string error = answers[rank]["error"];
    if (!error.empty() && error.back() == '.') error.pop_back();
    const bool full = error.find(std::strerror(ENOSPC)) != std::string::npos ||
                      error.find(std::strerror(EDQUOT)) != std::string::npos;
    throw Failure(
        answers.size() > 1 ? fmt::format("rank {} on {}: {}", rank, hosts[rank], error) : error,
        full ? "make room, or name another place: --directory DIR; df -h and quota -s say how much is left" : fix);
  }
  return answers;
}

nlohmann::json parse_line(const std::string& line) {
  const size_t start = line.find(kMark);
  return start == std::string::npos ? json() : json::parse(line.substr(start + kMark.size()), nullptr, false);
}

void run_as_rank(const DoctorOptions& options, int started) {
  const auto communicator = distributed::connect();
  distributed::set_deadlines({options.timeout, options.timeout, options.timeout, options.timeout});
  if (communicator->size() != started)
    throw Error(ExitCode::kPeerFailed,
                fmt::format("{} ranks were started, but this one sees {}: mpirun belongs to another MPI than the one "
                            "that muster was built with ({})",
                            started, communicator->size(), distributed::mpi_library_version()));
  const auto write = [&](const json& line) {
    if (communicator->rank() == 0) std::puts((kMark + one_line(line)).c_str()), std::fflush(stdout);
  };
  const auto hosts = communicator->all_gather_bytes(host_name());
  Ranks ranks{*communicator,
              [&](const Finding& finding) {
                write({{"finding", finding}});
              },
              hosts, std::set<std::string>(hosts.begin(), hosts.end()).size(), options.directory};
  write({{"ranks", hosts.size()}, {"hosts", ranks.machines}});
  run_checks(kRankChecks, ranks, ranks.report);
  ranks.gpus.reset();
  run_checks(kFileChecks, ranks, ranks.report);
  write({{"done", true}});
}

}  // namespace muster::launcher::doctor
