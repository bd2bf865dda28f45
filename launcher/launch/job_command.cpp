#include "launcher/launch/job_command.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/text.h"
#include "distributed/affinity.h"
#include "launcher/launch/hosts.h"

namespace muster::launcher {
namespace {

// What ranks on other hosts need of this process's environment. CUDA_VISIBLE_DEVICES is no such thing: it numbers this
// machine's GPUs.
const std::vector<std::string> kForwarded{"PATH",  "LD_LIBRARY_PATH", "OMP_",    "MUSTER_", "MKL_",
                                          "NCCL_", "TORCH_",          "MALLOC_", "HDF5_",   "CUBLAS_"};

// Of an outer step, in a shell that runs within it: a starter, or its ranks, would take themselves for its tasks.
const std::vector<std::string> kOfOuterStep{"SLURM_STEP_",
                                            "SLURM_STEPID",
                                            "SLURM_PROCID",
                                            "SLURM_LOCALID",
                                            "SLURM_NODEID",
                                            "SLURM_TASK_PID",
                                            "SLURM_GTIDS",
                                            "SLURM_SRUN_COMM_",
                                            "SLURM_LAUNCH_NODE_IPADDR",
                                            "SLURM_PTY_",
                                            "SLURM_CPU_BIND",
                                            "SLURM_CPU_BIND_",
                                            "SLURM_NTASKS",
                                            "SLURM_NPROCS",
                                            "SLURM_NNODES",
                                            "SLURM_OVERCOMMIT",
                                            "SLURM_DISTRIBUTION",
                                            "SLURM_PMIX_",
                                            "SLURM_PMIXP_",
                                            "PMIX_",
                                            "PMI_"};

// A pattern that ends in _ stands for all names that begin so.
bool is_one_of(const std::string& name, const std::vector<std::string>& patterns) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
    return pattern.back() == '_' ? name.rfind(pattern, 0) == 0 : name == pattern;
  });
}

std::string counted(int count, const std::string& one) {
  return std::to_string(count) + " " + one + (count == 1 ? "" : "s");
}

class Builder {
 public:
  Builder(const JobRequest& request, const LaunchEnvironment& here) : request_(request), here_(here) {}

  JobCommand build() {
    if (!request_.hosts.empty() && !request_.hostfile.empty()) fail("give either --hosts or --hostfile, not both");
    if (!request_.bind.empty()) distributed::bind_policy(request_.bind);
    if (!request_.hosts.empty()) hosts_ = parse_hosts(request_.hosts);
    if (!request_.hostfile.empty()) hosts_ = read_hostfile(request_.hostfile);
    choose_starter();
    if (!hosts_.empty())
      place_on_hosts();
    else if (here_.slurm)
      place_in_allocation();
    else
      place_here();
    if (job_.starter == LaunchBackend::kMpirun)
      mpirun_words();
    else
      srun_words();
    job_.words.push_back(here_.program);
    job_.words.insert(job_.words.end(), request_.command.begin(), request_.command.end());
    return job_;
  }

 private:
  [[noreturn]] static void fail(const std::string& message) { throw Error(ExitCode::kUsage, "launch: " + message); }

  // What the user would type, with one more flag.
  std::string with_flag(const std::string& flag) const {
    return "muster launch -n " + std::to_string(job_.ranks) + " " + flag + " " +
           (request_.command.empty() ? "train" : request_.command[0]) + " ...";
  }

  void choose_starter() {
    job_.starter = request_.starter;
    if (job_.starter == LaunchBackend::kAuto) {
      const bool by_slurm = here_.slurm && hosts_.empty() && !here_.srun.empty();
      job_.starter =
          by_slurm && (here_.srun_speaks_pmix || here_.mpirun.empty()) ? LaunchBackend::kSrun : LaunchBackend::kMpirun;
    }
    if (job_.starter == LaunchBackend::kMpirun) {
      if (here_.mpirun.empty())
        fail(
            "there is no mpirun on the PATH; install Open MPI (Debian: apt-get install openmpi-bin), or load your "
            "cluster's module of it");
      return;
    }
    if (!hosts_.empty())
      fail("srun takes the hosts of its allocation; --hosts and --hostfile are for mpirun (--starter mpirun)");
    if (!here_.slurm)
      fail(
          "--starter srun works inside a Slurm allocation only (SLURM_JOB_ID is not set); get one with salloc or "
          "sbatch");
    if (here_.srun.empty()) fail("there is no srun on the PATH, although this is a Slurm allocation");
    if (!here_.srun_speaks_pmix)
      fail(
          "this Slurm offers no PMIx (srun --mpi=list shows what it offers), without which each rank would be a job of "
          "its own. Use --starter mpirun, or ask "
          "your administrators for Slurm's PMIx plugin");
  }

  void place_here() {
    job_.ranks = request_.ranks > 0 ? request_.ranks : std::max(1, here_.gpus > 0 ? here_.gpus : here_.packages);
    if (job_.ranks > here_.cpus && !request_.oversubscribe)
      fail(std::to_string(job_.ranks) + " ranks on " + counted(here_.cpus, "core") +
           ": they would take turns. If that is what you want (results are the same, only slower), add "
           "--oversubscribe: " +
           with_flag("--oversubscribe"));
    set_threads(job_.ranks > here_.cpus ? 1 : here_.cores / job_.ranks);
  }

  void place_on_hosts() {
    int slots = 0, most = 0;
    for (const auto& host : hosts_) slots += host.slots;
    job_.ranks = request_.ranks > 0 ? request_.ranks : slots;
    if (job_.ranks > slots && !request_.oversubscribe)
      fail(std::to_string(job_.ranks) + " ranks, but " + counted(static_cast<int>(hosts_.size()), "host") + " with " +
           counted(slots, "slot") + (slots == 1 ? "" : " in all") +
           ". Give hosts more slots, or add --oversubscribe: " + with_flag("--oversubscribe"));
    job_.hosts = 0;
    int left = job_.ranks;
    for (const auto& host : hosts_) {
      if (left <= 0) break;
      most = std::max(most, std::min(host.slots, left));
      left -= host.slots;
      ++job_.hosts;
      job_.is_local = job_.is_local && is_this_machine(host.host);
    }
    if (!job_.is_local && here_.remote_shell.empty() && !here_.slurm)
      fail(
          "mpirun reaches other hosts by ssh, which is not on the PATH; install it (Debian: apt-get install "
          "openssh-client)");
    // More than there are slots: mpirun deals out the rest in turns.
    if (job_.ranks > slots) most = (job_.ranks + job_.hosts - 1) / job_.hosts;
    set_threads(most > here_.cpus ? 1 : here_.cores / most);
  }

  void place_in_allocation() {
    const auto& slurm = *here_.slurm;
    const int per_node = slurm.gpus_per_node > 0 ? slurm.gpus_per_node : here_.gpus > 0 ? here_.gpus : here_.packages;
    job_.ranks = request_.ranks > 0 ? request_.ranks
                 : slurm.tasks > 0  ? slurm.tasks
                                    : slurm.nodes * std::max(1, per_node);
    if (job_.ranks > slurm.cpus && !request_.oversubscribe)
      fail(std::to_string(job_.ranks) + " ranks, but this Slurm allocation has " + counted(slurm.cpus, "core") +
           " on " + counted(slurm.nodes, "node") +
           ". Ask for more (salloc, sbatch: --ntasks, --cpus-per-task), or add --oversubscribe: " +
           with_flag("--oversubscribe"));
    job_.hosts = std::min(slurm.nodes, job_.ranks);
    job_.is_local = slurm.nodes == 1;
    const int most = (job_.ranks + job_.hosts - 1) / job_.hosts;
    // Slurm counts hardware threads, ranks compute on cores.
    const int threads_per_core = std::max(1, here_.cpus / std::max(1, here_.cores));
    set_threads(most > slurm.least_cpus ? 1 : slurm.least_cpus / threads_per_core / most);
  }

  bool is_this_machine(const std::string& host) const {
    return host == "localhost" || host == "127.0.0.1" || host == here_.host ||
           host == here_.host.substr(0, here_.host.find('.'));
  }

  void set_threads(int share) {
    const auto own = here_.environment.find("OMP_NUM_THREADS");
    const bool is_own = request_.threads == 0 && own != here_.environment.end();
    job_.threads = std::max(1, is_own                 ? std::atoi(own->second.c_str())
                               : request_.threads > 0 ? request_.threads
                                                      : share);
    if (!is_own) job_.environment["OMP_NUM_THREADS"] = std::to_string(job_.threads);
    if (!request_.bind.empty())
      job_.environment[distributed::kBindVariable] = request_.bind;
    else if (!here_.environment.count(distributed::kBindVariable))
      job_.environment[distributed::kBindVariable] = "numa";
  }

  void leave_outer_step() {
    if (!here_.slurm || !here_.slurm->within_step) return;
    for (const auto& [name, value] : here_.environment)
      if (is_one_of(name, kOfOuterStep)) job_.removed.push_back(name);
  }

  void mpirun_words() {
    const auto& environment = here_.environment;
    const bool root_allowed =
        environment.count("OMPI_ALLOW_RUN_AS_ROOT") && environment.count("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
    if (here_.is_root && !request_.allow_run_as_root && !root_allowed)
      fail(
          "you are root, and mpirun refuses to run as root because a mistake could harm the system. In a container of "
          "your own that is usually fine: add "
          "--allow-run-as-root (" +
          with_flag("--allow-run-as-root") + "); otherwise run as an ordinary user.");
    leave_outer_step();
    // mpirun starts its daemons by srun, which would wait for the end of this step.
    if (!job_.removed.empty() && !job_.is_local) job_.environment["SLURM_OVERLAP"] = "1";
    auto& words = job_.words;
    // Hardware threads are what this program counts as cores, so mpirun must too. No binding: ranks do that
    // (distributed/affinity.h); mpirun's default would put every job of this machine on the same first cores.
    words = {here_.mpirun, "-n", std::to_string(job_.ranks), "--use-hwthread-cpus", "--bind-to", "none"};
    if (request_.label_output) words.push_back("--tag-output");
    if (!hosts_.empty()) words.insert(words.end(), {"--map-by", "slot"});
    if (!request_.hosts.empty()) words.insert(words.end(), {"--host", with_counts()});
    if (!request_.hostfile.empty()) words.insert(words.end(), {"--hostfile", request_.hostfile});
    if (request_.oversubscribe) words.push_back("--oversubscribe");
    if (request_.allow_run_as_root) words.push_back("--allow-run-as-root");
    if (job_.is_local) return;
    auto all = environment;
    all.insert(job_.environment.begin(), job_.environment.end());
    for (const auto& [name, value] : all)
      if (is_one_of(name, kForwarded)) words.insert(words.end(), {"-x", name});
  }

  std::string with_counts() const {
    std::string text;
    for (const auto& host : hosts_) text += (text.empty() ? "" : ",") + host.host + ":" + std::to_string(host.slots);
    return text;
  }

  void srun_words() {
    leave_outer_step();
    auto& words = job_.words;
    // A rank that fails is not to take the others with it: their watchdogs say what has happened, and end with 76. What
    // they leave hanging is ended after a minute. Ranks bind themselves, and get the whole environment whatever
    // sbatch's --export was.
    words = {here_.srun,
             "--mpi=pmix",
             "--ntasks=" + std::to_string(job_.ranks),
             "--nodes=" + std::to_string(job_.hosts),
             "--cpu-bind=none",
             "--export=ALL",
             "--kill-on-bad-exit=0",
             "--wait=60"};
    if (request_.label_output) words.push_back("--label");
    if (here_.slurm->within_step) words.push_back("--overlap");
    if (request_.oversubscribe) words.push_back("--overcommit");
  }

  const JobRequest& request_;
  const LaunchEnvironment& here_;
  std::vector<HostSlots> hosts_;
  JobCommand job_;
};

}  // namespace

JobCommand job_command(const JobRequest& request, const LaunchEnvironment& surroundings) {
  return Builder(request, surroundings).build();
}

std::string shell_line(const JobCommand& command) {
  std::string text;
  if (!command.environment.empty() || !command.removed.empty()) text = "env";
  for (const auto& name : command.removed) text += " -u " + name;
  for (const auto& [name, value] : command.environment) text += " " + name + "=" + shell_quoted(value);
  for (const auto& word : command.words) text += (text.empty() ? "" : " ") + shell_quoted(word);
  return text;
}

}  // namespace muster::launcher
