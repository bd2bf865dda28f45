#include "core/training/compute.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <gnu/libc-version.h>
#include <sched.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "distributed/device.h"
#include "distributed/nccl.h"

#include <nlohmann/json.hpp>

namespace muster::training {
namespace {

constexpr int64_t kReproducibleMicrobatches = 8;
constexpr int kMostThreads = 4096;

// Without this Torch would take all cores, on every rank.
int threads_of(const config::Training& training) {
  if (training.threads() > 0) return static_cast<int>(training.threads());
  const char* given = std::getenv("OMP_NUM_THREADS");
  return training.reproducible() || !given ? 1 : std::clamp(std::atoi(given), 1, kMostThreads);
}

// MKL chooses its code by the processor and by where arrays lie in memory. STRICT gives the same sums whatever the
// alignment; the instruction set in front of it counts on Intel's processors; others get MKL's own choice.
// MKL reads it at its first call.
void fix_matrix_products() {
  const char* products = std::getenv("MKL_CBWR");
  if (products != nullptr && *products != '\0') return;  // the user's, judged by require_strict_products()
#if defined(__x86_64__)
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  setenv("MKL_CBWR", wide ? "AVX512,STRICT" : "AVX2,STRICT", 1);
#endif
}

void require_strict_products() {
  const char* products = std::getenv("MKL_CBWR");
  if (products == nullptr || std::string(products).find("STRICT") != std::string::npos) return;
  throw SharedError(ExitCode::kBadConfig,
                    fmt::format("training.reproducible: the environment sets MKL_CBWR={}, under which sums depend on "
                                "where arrays lie in memory. Unset it, or append \",STRICT\"",
                                products));
}

// Vendor, family and model: what libraries choose their code by.
std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  std::string line, found;
  while (std::getline(file, line) && !line.empty())
    for (const char* name : {"vendor_id", "cpu family", "model\t"})
      if (line.rfind(name, 0) == 0) found += (found.empty() ? "" : " ") + line.substr(line.find(':') + 2);
  return found.empty() ? "unknown processor" : found;
}

// Torch's operations and our own kernels choose their code by whether equal bits are asked for; cuBLAS by a workspace
// whose size it otherwise chooses itself.
void ask_for_equal_bits(bool gpu) {
  if (gpu) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(
      false);  // for finding uses of it; there are none, and it costs a pass each
}

std::string numerics_of_this_process(const std::string& gpu) {
  const char* products = std::getenv("MKL_CBWR");
  return fmt::format("torch {}, libc {}, {} {}, MKL_CBWR {}{}{}", TORCH_VERSION, gnu_get_libc_version(), processor(),
                     at::get_cpu_capability(), products ? products : "not set", gpu.empty() ? "" : ", ", gpu);
}

distributed::DeviceRequest request_of(const config::Training& training) {
  using Wanted = distributed::WantedDevice;
  const Wanted wanted = training.device() == config::Training::CUDA  ? Wanted::kCuda
                        : training.device() == config::Training::CPU ? Wanted::kCpu
                                                                     : Wanted::kAuto;
  return {wanted, training.share_device()};
}

}  // namespace

int usable_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  return std::max(1, CPU_COUNT(&allowed));
}

int64_t microbatches_of(const config::Training& training, int64_t ranks) {
  const int64_t microbatches = training.microbatches() > 0 ? training.microbatches()
                               : training.reproducible()   ? kReproducibleMicrobatches
                                                           : ranks;
  if (training.reproducible() && ranks > microbatches)
    throw SharedError(
        ExitCode::kBadConfig,
        fmt::format("training.microbatches: training.reproducible shares out {0} microbatches{1}, which is less than "
                    "this job's {2} ranks. Start at most {0} ranks, or set training.microbatches={2} and keep that "
                    "number for every run that is to have the same bits",
                    microbatches, training.microbatches() == 0 ? " (the default)" : "", ranks));
  return microbatches;
}

Compute prepare_compute(const config::Training& training, distributed::Communicator& communicator) {
  Compute compute;
  compute.reproducible = training.reproducible();
  compute.bf16 = training.precision() == config::Training::BF16;
  compute.threads = threads_of(training);
  compute.microbatches = microbatches_of(training, communicator.size());
  const auto binding = distributed::bind_device(communicator, request_of(training));
  compute.device = binding.device;
  compute.gpu = binding.gpu.name;
  compute.ranks_on_gpu = binding.ranks_on_gpu;
  compute.affinity = distributed::bind_cores(communicator, binding);
  if (const int cores = usable_cores(); compute.threads > cores && !training.share_cores()) {
    compute.note = fmt::format(
        "{} is {}, but this rank may use {}: it computes on as many threads "
        "(training.share_cores=true for more)",
        training.threads() > 0 ? "training.threads" : "OMP_NUM_THREADS", compute.threads, plural(cores, "core"));
    compute.threads = cores;
  }
  at::set_num_threads(compute.threads);
  at::globalContext().setAllowTF32CuBLAS(training.tf32());
  if (!compute.reproducible) return compute;
  fix_matrix_products();
  distributed::run_on_all_ranks(communicator, [] { require_strict_products(); });
  ask_for_equal_bits(compute.device.is_cuda());
  compute.numerics = numerics_of_this_process(compute.gpu);
  distributed::require_same(
      communicator, "the numerics (processor and matrix library)", compute.numerics,
      "training.reproducible needs the same kind of processor and the same libraries on every rank: choose one kind of "
      "node (Slurm: --constraint), or set training.reproducible=false");
  return compute;
}

std::unique_ptr<distributed::Communicator> join_gpus(const Compute& compute, distributed::Communicator& communicator) {
  if (compute.device.is_cpu() || communicator.size() == 1) return nullptr;
  return distributed::make_nccl_communicator(communicator, compute.device);
}

nlohmann::json describe_rank(const Compute& compute) {
  return {{"threads", compute.threads},
          {"local_rank", compute.affinity.local_rank},
          {"cores", distributed::cpu_text(compute.affinity.cpus)},
          {"binding", compute.affinity.why},
          {"device", compute.device.is_cpu() ? "cpu" : fmt::format("{} {}", compute.device.str(), compute.gpu)}};
}

nlohmann::json describe_job(const Compute& compute) {
  nlohmann::json job = {{"microbatches", compute.microbatches}};
  if (compute.reproducible) job["numerics"] = compute.numerics;
  return job;
}

}  // namespace muster::training
