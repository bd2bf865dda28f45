#include "launcher/doctor/speed.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/training/compute.h"
#include "distributed/cuda_devices.h"
#include "distributed/device.h"
#include "distributed/nccl.h"
#include "distributed/watchdog.h"
#include "launcher/doctor/ranks.h"

namespace muster::launcher::doctor {
namespace {

using distributed::Communicator;
using Clock = std::chrono::steady_clock;

struct Size {
  const char* name;
  int64_t floats;
  int most_repeats;
};
constexpr Size kSizes[] = {{"8B", 2, 300}, {"1MB", 250000, 50}, {"64MB", 16000000, 5}};
constexpr double kSecondsPerSize = 0.6;

// Only orders of magnitude are judged: docs/doctor.md has what is usual.
struct Expectation {
  double latency;    // seconds, of 8 bytes
  double bandwidth;  // bytes per second and rank, of 64 MB
  const char* link;
};
Expectation expectation(size_t machines, bool gpus) {
  if (machines > 1) return {5e-3, 50e6, "between machines (half of what 1 Gbit/s Ethernet gives)"};
  return gpus ? Expectation{1e-3, 1e9, "between the GPUs of one machine"}
              : Expectation{1e-3, 200e6, "within one machine, through its memory"};
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Timing {
  double seconds = 0;  // median of one sum
  bool right = true;
};

Timing time_sums(Communicator& communicator, const Size& size, c10::Device device) {
  const auto tensor = at::empty({size.floats}, at::TensorOptions().dtype(at::kFloat).device(device));
  const auto once = [&] {
    tensor.fill_(static_cast<float>(communicator.rank() + 1));
    tensor.slice(0, 0, 1).cpu();  // a GPU has caught up
    communicator.all_gather_bytes("");
    const auto start = Clock::now();
    communicator.all_reduce_sum(tensor);
    tensor.slice(0, 0, 1).cpu();
    return seconds_since(start);
  };
  once();
  // How often is for rank 0 to say, so that all do the same.
  const auto count = at::tensor(
      {static_cast<int64_t>(std::clamp(kSecondsPerSize / std::max(once(), 1e-7), 3.0, double(size.most_repeats)))},
      at::kLong);
  communicator.broadcast(count, 0);
  std::vector<double> seconds;
  for (int64_t i = 0; i < count.item<int64_t>(); ++i) seconds.push_back(once());
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size()) / 2, seconds.end());
  const double sum = 0.5 * communicator.size() * (communicator.size() + 1);
  const auto worst = (tensor - sum).abs().max().item<double>();
  return {seconds[seconds.size() / 2], worst <= 1e-6 * sum};
}

void report_sizes(Communicator& communicator, Communicator& control, c10::Device device, size_t machines,
                  const Report& report) {
  const int ranks = communicator.size();
  const auto bounds = expectation(machines, device.is_cuda());
  const bool crowded = device.is_cpu() && communicator.local_size() > training::usable_cores();
  for (const auto& size : kSizes) {
    const auto timing = time_sums(communicator, size, device);
    const auto answers = each_rank(control, [&] { return nlohmann::json(timing.right); });
    const double bytes = 4.0 * static_cast<double>(size.floats);
    const double bandwidth = bytes / timing.seconds * 2 * (ranks - 1) / ranks;
    Finding finding{std::string(device.is_cuda() ? "gpu_" : "") + "all_reduce_" + size.name,
                    State::kOk,
                    seconds_text(timing.seconds),
                    "",
                    "",
                    "",
                    -1,
                    {}};
    finding.figures = {{"bytes", bytes},
                       {"seconds", timing.seconds},
                       {"bytes_per_second", bandwidth},
                       {"ranks", ranks},
                       {"machines", machines}};
    if (size.floats > 2) finding.found += ", " + size_text(bandwidth) + "/s each way per rank";
    const auto wrong = std::find(answers.begin(), answers.end(), nlohmann::json(false));
    if (wrong != answers.end()) {
      finding.state = State::kFailed;
      finding.found = "the sum over ranks is wrong on rank " + std::to_string(wrong - answers.begin());
      finding.expected = "1 + 2 + ... + " + std::to_string(ranks) + " in every place";
      finding.fix =
          "do not train with this MPI: try another transport (mpirun --mca btl tcp,self), and tell your administrator";
    } else if (size.floats == 2 && crowded) {
      finding.found += " (more ranks than cores take turns: not judged)";
    } else if (size.floats == 2 && timing.seconds > bounds.latency) {
      finding.state = State::kWarning;
      finding.expected = "below " + seconds_text(bounds.latency) + " " + bounds.link;
      finding.fix =
          "see \"load\" and \"cores\" above; between machines, see which network MPI takes (mpirun --mca "
          "btl_base_verbose 30)";
    } else if (size.floats == kSizes[2].floats && bandwidth < bounds.bandwidth) {
      finding.state = State::kWarning;
      finding.expected = "above " + size_text(bounds.bandwidth) + "/s " + bounds.link;
      finding.fix = machines > 1 ? "see which network MPI takes, and choose the fast one: mpirun --mca "
                                   "btl_tcp_if_include eth0 (GPUs: NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO)"
                                 : "see \"load\", \"cores\" and \"shared_memory\" above";
    }
    report(finding);
  }
}

}  // namespace

void check_all_reduce(Communicator& communicator, size_t machines, const Report& report) {
  if (communicator.size() > 1) return report_sizes(communicator, communicator, c10::kCPU, machines, report);
  report({"all_reduce", State::kSkipped, "one rank alone", "", "", "", -1, {}});
}

void check_gpu_all_reduce(Communicator& communicator, size_t machines, const Report& report) {
  if (communicator.size() == 1) return report({"nccl", State::kSkipped, "one rank alone", "", "", "", -1, {}});
  int64_t with = 0;
  for (const auto& answer :
       each_rank(communicator, [] { return nlohmann::json(distributed::visible_gpus().gpus.size()); }))
    with += answer.is_number() && answer.get<int64_t>() > 0;
  if (with == 0) return report({"nccl", State::kSkipped, "no rank sees a GPU", "", "", "", -1, {}});
  Finding finding{"nccl",
                  State::kOk,
                  "NCCL " + distributed::nccl_version() + " joins all ranks",
                  "a GPU for every rank, joined by NCCL",
                  "",
                  "",
                  -1,
                  {}};
  try {
    const auto device = distributed::bind_device(communicator, {}).device;
    const auto start = Clock::now();
    const auto joined = distributed::make_nccl_communicator(communicator, device);
    finding.figures["start_seconds"] = seconds_since(start);
    report(finding);
    report_sizes(*joined, communicator, device, machines, report);
  } catch (const SharedError& error) {
    finding.state = State::kFailed;
    finding.found = error.what();
    finding.fix =
        "NCCL_DEBUG=INFO muster doctor shows what NCCL tries; one rank per GPU (-n), and /dev/shm large enough";
    report(finding);
  }
}

}  // namespace muster::launcher::doctor
