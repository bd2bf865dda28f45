// Latency and bandwidth of the collectives, per backend and size, compared with MPI called directly; see README.md.
// mpirun -n W collectives [SMALLEST_BYTES LARGEST_BYTES]
#define OMPI_SKIP_MPICXX 1
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>

#include "benchmarks/measure.h"
#include "distributed/device.h"
#include "distributed/nccl.h"
#include "distributed/threads.h"
#include "distributed/tree_sum.h"

namespace muster::distributed {
namespace {

using Action = std::function<void()>;
using Key = std::pair<std::string, int64_t>;  // collective and bytes

// One collective at one size. `size` is counted as nccl-tests does: what each rank puts in (all_reduce, broadcast,
// all_to_all) or gets (all_gather).
struct Case {
  std::string name;
  int64_t bytes;
  double bus_factor;  // algorithm bandwidth times this is what each link carries
  Action ours;
  Action raw;  // the same by MPI directly
};

// The cases of `bytes` bytes of float32. Tensors live as long as the actions.
std::vector<Case> cases_of(Communicator& ranks, int64_t bytes, c10::Device device) {
  const int n = ranks.size(), own = ranks.rank();
  const double share = static_cast<double>(n - 1) / n;
  const int64_t numel = bytes / 4, each = numel / n;
  const at::Tensor whole = at::ones({numel}, device), out = at::ones({numel}, device), part = at::ones({each}, device);
  const std::vector<int64_t> counts(n, each);
  std::vector<int64_t> boundaries(n + 1);
  std::iota(boundaries.begin(), boundaries.end(), 0);
  const auto tree = std::make_shared<TreeSum>(n, boundaries, own);
  const auto all_reduce = [=] {
    MPI_Allreduce(MPI_IN_PLACE, whole.data_ptr(), static_cast<int>(numel), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  };
  return {{"all_reduce", bytes, 2 * share, [=, &ranks] { ranks.all_reduce_sum(whole); }, all_reduce},
          {"all_gather", each * n * 4, share, [=, &ranks] { ranks.all_gather_rows(part, counts); },
           [=] {
             const int count = static_cast<int>(each);
             MPI_Allgather(part.data_ptr(), count, MPI_FLOAT, out.data_ptr(), count, MPI_FLOAT, MPI_COMM_WORLD);
           }},
          {"all_to_all", each * n * 4, share,
           [=, &ranks] { ranks.all_to_all_rows(whole.slice(0, 0, each * n), counts, counts); },
           [=] {
             const int count = static_cast<int>(each);
             MPI_Alltoall(whole.data_ptr(), count, MPI_FLOAT, out.data_ptr(), count, MPI_FLOAT, MPI_COMM_WORLD);
           }},
          {"broadcast", bytes, 1, [=, &ranks] { ranks.broadcast(whole, 0); },
           [=] { MPI_Bcast(whole.data_ptr(), static_cast<int>(numel), MPI_FLOAT, 0, MPI_COMM_WORLD); }},
          // The peer is the sum that is not reproducible.
          {"tree_sum", bytes, 2 * share, [=, &ranks] { tree->add(own, whole), tree->reduce(ranks, out); }, all_reduce}};
}

double microseconds(const Action& action, c10::Device device) {
  return 1e6 * benchmarks::seconds([&] {
           action();
           if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
         });
}

// The slowest rank's median, on every rank.
double slowest(Communicator& ranks, double time) {
  double most = 0;
  for (const auto& text : ranks.all_gather_bytes(fmt::to_string(time))) most = std::max(most, std::atof(text.c_str()));
  return most;
}

// Measures all cases and prints one line each on rank 0. `raw_times`: filled where MPI is measured, compared with where
// it is not.
void measure(const char* backend, Communicator& ranks, c10::Device device, int64_t smallest, int64_t largest,
             bool with_raw, std::map<Key, double>& raw_times) {
  for (int64_t bytes = smallest; bytes <= largest; bytes *= 4)
    for (const Case& each : cases_of(ranks, bytes, device)) {
      if (each.bytes == 0) continue;
      const int runs = static_cast<int>(std::clamp<int64_t>((int64_t{64} << 20) / bytes, 7, 500));
      std::vector<double> ours, raw;
      // Alternately, so that whatever else the machine does affects both.
      for (int run = -3; run < runs; ++run) {
        const double raw_time = with_raw ? microseconds(each.raw, c10::kCPU) : 0,
                     our_time = microseconds(each.ours, device);
        if (run >= 0) ours.push_back(our_time), raw.push_back(raw_time);
      }
      const double time = slowest(ranks, benchmarks::median(ours)),
                   gigabytes = static_cast<double>(each.bytes) / time / 1e3;
      if (with_raw) raw_times[{each.name, bytes}] = slowest(ranks, benchmarks::median(raw));
      if (ranks.rank() != 0) continue;
      const auto peer = raw_times.find({each.name, bytes});
      std::printf("%-8s %-10s %10ld %10ld %6s %11.1f %8.2f %8.2f", backend, each.name.c_str(),
                  static_cast<long>(each.bytes), static_cast<long>(each.bytes / 4), "float", time, gigabytes,
                  gigabytes * each.bus_factor);
      if (peer == raw_times.end())
        std::printf("%12s %6s\n", "-", "-");
      else
        std::printf("%12.1f %6.2f\n", peer->second, time / peer->second);
      std::fflush(stdout);
    }
}

// MPI_Barrier would take the cores that rank 0's threads need.
void wait_for_rank_0() {
  MPI_Request request;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int done = 0; !done; ::usleep(1000)) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
}

void run(int64_t smallest, int64_t largest) {
  auto ranks = connect();
  if (ranks->size() == 1) throw Error(ExitCode::kUsage, "Start this under mpirun with two ranks or more.");
  at::set_num_threads(1);
  std::map<Key, double> raw_times;
  if (ranks->rank() == 0)
    std::printf("%d ranks, %s\n%-8s %-10s %10s %10s %6s %11s %8s %8s%12s %6s\n", ranks->size(),
                mpi_library_version().c_str(), "backend", "collective", "bytes", "count", "type", "time us", "algbw",
                "busbw", "raw MPI us", "ratio");
  measure("mpi", *ranks, c10::kCPU, smallest, largest, true, raw_times);
  if (ranks->rank() == 0) {
    run_as_threads(ranks->size(), [&](Communicator& threads) {
      at::set_num_threads(1);
      std::map<Key, double> known = raw_times;
      measure("threads", threads, c10::kCPU, smallest, largest, false, known);
    });
  }
  wait_for_rank_0();
  const DeviceBinding binding = bind_device(*ranks, {WantedDevice::kAuto, /*share=*/true});
  if (binding.device.is_cpu()) return;
  // Its peer, NCCL called directly, is nccl-tests.
  std::map<Key, double> none;
  const auto gpus = make_nccl_communicator(*ranks, binding.device);
  measure("nccl", *gpus, binding.device, smallest, largest, false, none);
}

}  // namespace
}  // namespace muster::distributed

int main(int argc, char** argv) {
  try {
    muster::distributed::run(argc > 1 ? std::atoll(argv[1]) : 8, argc > 2 ? std::atoll(argv[2]) : int64_t{64} << 20);
  } catch (const muster::Error& error) {
    std::fprintf(stderr, "collectives: %s\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
