#include "launcher/launch/job_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <regex>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "distributed/affinity.h"

namespace muster::launcher {
namespace {

constexpr size_t kLongestHost = 55;  // characters of a host's name that mpirun (Open MPI 4.1) survives

// What ranks on other hosts need of this process's environment. CUDA_VISIBLE_DEVICES is no such thing: it numbers this
// machine's GPUs.
const std::regex kForwarded("PATH|LD_LIBRARY_PATH|(OMP|MUSTER|MKL|NCCL|TORCH|MALLOC|HDF5|CUBLAS)_.*");

// Variables of an outer step, set in a shell that runs within it: they would make the backend, or its ranks, believe
// that they are tasks of that step.
const std::regex kOfOuterStep(
    "SLURM_(STEPID|PROCID|LOCALID|NODEID|TASK_PID|GTIDS|LAUNCH_NODE_IPADDR|CPU_BIND|NTASKS|NPROCS|NNODES|OVERCOMMIT|"
    "DISTRIBUTION|(STEP|SRUN_COMM|PTY|CPU_BIND|PMIX|PMIXP)_.*)|(PMIX|PMI)_.*");

constexpr int64_t kMostSlots = 4096;

bool is_host_name(const std::string& name) { return std::regex_match(name, std::regex("[A-Za-z0-9_][A-Za-z0-9._-]*")); }

// where: "--hosts" or "file:line"; part: what was read there.
void add(std::vector<HostSlots>& hosts, const std::string& host, const std::string& slots, const std::string& part,
         const std::string& where) {
  const auto fail = [&](const std::string& what) { throw Error(ExitCode::kUsage, fmt::format("{}: {}", where, what)); };
  if (!is_host_name(host)) fail(fmt::format("\"{}\": \"{}\" is not a host name", part, host));
  const int64_t number = parse_integer(slots).value_or(0);
  if (number < 1 || number > kMostSlots)
    fail(fmt::format("\"{}\": the number of slots must be from 1 to {}, not \"{}\"", part, kMostSlots, slots));
  for (const auto& other : hosts)
    if (other.host == host)
      fail(fmt::format("the host {} is given twice; give it once, with the sum of its slots", host));
  hosts.push_back({host, static_cast<int>(number)});
}

class Builder {
 public:
  Builder(const JobRequest& request, const LaunchEnvironment& here) : request_(request), here_(here) {}

  JobCommand build() {
    if (!request_.hosts.empty() && !request_.hostfile.empty()) fail("give either --hosts or --hostfile, not both");
    if (!request_.bind.empty()) distributed::bind_policy(request_.bind);
    if (!request_.hosts.empty()) hosts_ = parse_hosts(request_.hosts);
    if (!request_.hostfile.empty()) hosts_ = read_hostfile(request_.hostfile);
    choose_backend();
    if (!hosts_.empty())
      place_on_hosts();
    else if (here_.slurm)
      place_in_allocation();
    else
      place_here();
    if (job_.backend == LaunchBackend::kMpirun)
      mpirun_arguments();
    else
      srun_arguments();
    job_.arguments.push_back(here_.program);
    job_.arguments.insert(job_.arguments.end(), request_.command.begin(), request_.command.end());
    return job_;
  }

 private:
  [[noreturn]] static void fail(const std::string& message) { throw Error(ExitCode::kUsage, "launch: " + message); }

  // What the user would type, with one more flag.
  std::string with_flag(const std::string& flag) const {
    return fmt::format("muster launch -n {} {} {} ...", job_.ranks, flag,
                       request_.command.empty() ? "train" : request_.command[0]);
  }

  void choose_backend() {
    job_.backend = request_.backend;
    if (job_.backend == LaunchBackend::kAuto) {
      const bool by_slurm = here_.slurm && hosts_.empty() && !here_.srun.empty();
      job_.backend =
          by_slurm && (here_.srun_speaks_pmix || here_.mpirun.empty()) ? LaunchBackend::kSrun : LaunchBackend::kMpirun;
    }
    if (job_.backend == LaunchBackend::kMpirun) {
      if (here_.mpirun.empty())
        fail(
            "there is no mpirun on the PATH; install Open MPI (Debian: apt-get install openmpi-bin), or load your "
            "cluster's module of it");
      if (here_.host.size() > kLongestHost)
        fail(fmt::format(
            "this machine's name has {} characters, and Open MPI crashes on more than {}. Give it a shorter "
            "one (hostname NAME; in containers: --hostname NAME)",
            here_.host.size(), kLongestHost));
      return;
    }
    if (!hosts_.empty())
      fail("srun takes the hosts of its allocation; --hosts and --hostfile are for mpirun (--backend mpirun)");
    if (!here_.slurm)
      fail(
          "--backend srun works inside a Slurm allocation only (SLURM_JOB_ID is not set); get one with salloc or "
          "sbatch");
    if (here_.srun.empty()) fail("there is no srun on the PATH, although this is a Slurm allocation");
    if (!here_.srun_speaks_pmix)
      fail(
          "this Slurm offers no PMIx (srun --mpi=list shows what it offers), without which each rank would be a job of "
          "its own. Use --backend mpirun, or ask your administrators for Slurm's PMIx plugin");
  }

  void place_here() {
    job_.ranks = request_.ranks > 0 ? request_.ranks : std::max(1, here_.gpus > 0 ? here_.gpus : here_.packages);
    if (job_.ranks > here_.cpus && !request_.oversubscribe)
      fail(
          fmt::format("{} ranks on {} would share cores. If that is what you want (results are the same, only slower), "
                      "add --oversubscribe: {}",
                      job_.ranks, plural(here_.cpus, "core"), with_flag("--oversubscribe")));
    set_threads(job_.ranks > here_.cpus ? 1 : here_.cores / job_.ranks);
  }

  void place_on_hosts() {
    int slots = 0, most = 0;
    for (const auto& host : hosts_) slots += host.slots;
    job_.ranks = request_.ranks > 0 ? request_.ranks : slots;
    if (job_.ranks > slots && !request_.oversubscribe)
      fail(fmt::format("{} ranks, but {} with {}{}. Give hosts more slots, or add --oversubscribe: {}", job_.ranks,
                       plural(static_cast<int>(hosts_.size()), "host"), plural(slots, "slot"),
                       slots == 1 ? "" : " in all", with_flag("--oversubscribe")));
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
    // More than there are slots: mpirun spreads the rest evenly.
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
      fail(fmt::format(
          "{} ranks, but this Slurm allocation has {} on {}. Ask for more (salloc, sbatch: --ntasks, "
          "--cpus-per-task), or add --oversubscribe: {}",
          job_.ranks, plural(slurm.cpus, "core"), plural(slurm.nodes, "node"), with_flag("--oversubscribe")));
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
    if (job_.is_local && request_.threads > here_.cpus && !request_.oversubscribe)
      fail(
          fmt::format("{} threads for each rank on {} would share cores, which is far slower. Leave --threads out for "
                      "each rank's share of the cores, or add --oversubscribe: {}",
                      request_.threads, plural(here_.cpus, "core"), with_flag("--oversubscribe")));
    job_.threads = std::max(1, is_own                 ? std::atoi(own->second.c_str())
                               : request_.threads > 0 ? request_.threads
                                                      : share);
    if (!is_own) job_.environment["OMP_NUM_THREADS"] = fmt::to_string(job_.threads);
    if (!request_.bind.empty())
      job_.environment[distributed::kBindVariable] = request_.bind;
    else if (!here_.environment.count(distributed::kBindVariable))
      job_.environment[distributed::kBindVariable] = "numa";
  }

  void leave_outer_step() {
    if (!here_.slurm || !here_.slurm->within_step) return;
    for (const auto& [name, value] : here_.environment)
      if (std::regex_match(name, kOfOuterStep)) job_.removed.push_back(name);
  }

  void mpirun_arguments() {
    auto environment = here_.environment;
    const bool root_allowed =
        environment.count("OMPI_ALLOW_RUN_AS_ROOT") && environment.count("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
    if (here_.is_root && !request_.allow_run_as_root && !root_allowed)
      fail(
          fmt::format("you are root, and mpirun refuses to run as root because a mistake could harm the system. In a "
                      "container of your own that is usually fine: add --allow-run-as-root ({}); otherwise run as an "
                      "ordinary user.",
                      with_flag("--allow-run-as-root")));
    leave_outer_step();
    // mpirun starts its daemons by srun, which would wait for the end of this step.
    if (!job_.removed.empty() && !job_.is_local) job_.environment["SLURM_OVERLAP"] = "1";
    auto& arguments = job_.arguments;
    // Hardware threads are what this program counts as cores, so mpirun must too. No binding: ranks do that
    // (distributed/affinity.h); mpirun's default would put every job of this machine on the same first cores.
    arguments = {here_.mpirun, "-n", fmt::to_string(job_.ranks), "--use-hwthread-cpus", "--bind-to", "none"};
    if (request_.label_output) arguments.push_back("--tag-output");
    if (!hosts_.empty()) arguments.insert(arguments.end(), {"--map-by", "slot"});
    std::vector<std::string> counts;
    for (const auto& host : hosts_) counts.push_back(fmt::format("{}:{}", host.host, host.slots));
    if (!request_.hosts.empty()) arguments.insert(arguments.end(), {"--host", join(counts, ",")});
    if (!request_.hostfile.empty()) arguments.insert(arguments.end(), {"--hostfile", request_.hostfile});
    if (request_.oversubscribe) arguments.push_back("--oversubscribe");
    if (request_.allow_run_as_root) arguments.push_back("--allow-run-as-root");
    if (job_.is_local) return;
    environment.insert(job_.environment.begin(), job_.environment.end());
    for (const auto& [name, value] : environment)
      if (std::regex_match(name, kForwarded)) arguments.insert(arguments.end(), {"-x", name});
  }

  void srun_arguments() {
    leave_outer_step();
    auto& arguments = job_.arguments;
    // A rank that fails must not take the others with it: their watchdogs report what has happened and exit with 76.
    // Ranks that hang are ended after a minute. Ranks bind themselves, and get the whole environment whatever sbatch's
    // --export was.
    arguments = {here_.srun,
                 "--mpi=pmix",
                 fmt::format("--ntasks={}", job_.ranks),
                 fmt::format("--nodes={}", job_.hosts),
                 "--cpu-bind=none",
                 "--export=ALL",
                 "--kill-on-bad-exit=0",
                 "--wait=60"};
    if (request_.label_output) arguments.push_back("--label");
    if (here_.slurm->within_step) arguments.push_back("--overlap");
    if (request_.oversubscribe) arguments.push_back("--overcommit");
  }

  const JobRequest& request_;
  const LaunchEnvironment& here_;
  std::vector<HostSlots> hosts_;
  JobCommand job_;
};

}  // namespace

std::vector<HostSlots> parse_hosts(const std::string& text) {
  std::vector<HostSlots> hosts;
  std::istringstream parts(text + ",");  // a part for every comma, also where nothing follows
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t colon = part.find(':');
    if (part.empty())
      throw Error(ExitCode::kUsage, fmt::format("--hosts: \"{}\" has an empty part; write a:4,b:4", text));
    add(hosts, part.substr(0, colon), colon == std::string::npos ? "1" : part.substr(colon + 1), part, "--hosts");
  }
  return hosts;
}

std::vector<HostSlots> read_hostfile(const std::string& path) {
  const auto fail = [&](const char* what) {
    throw Error(ExitCode::kUsage, fmt::format("--hostfile: {}: {}", path, what));
  };
  const auto content = read_file_if_there(path, 16 << 20);
  if (!content) fail("it is missing or cannot be read");
  std::vector<HostSlots> hosts;
  std::istringstream lines(*content);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string host, slots, more;
    if (!(words >> host)) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    if (!(words >> slots) || slots.rfind("slots=", 0) != 0 || words >> more)
      throw Error(ExitCode::kUsage, fmt::format("{}: \"{}\": write a host and its slots, as in: {} slots=4", where,
                                                line, is_host_name(host) ? host : "node1"));
    add(hosts, host, slots.substr(6), line, where);
  }
  if (hosts.empty()) fail("it names no host; write lines such as: node1 slots=4");
  return hosts;
}

JobCommand job_command(const JobRequest& request, const LaunchEnvironment& here) {
  return Builder(request, here).build();
}

std::string shell_line(const JobCommand& command) {
  std::vector<std::string> words;
  if (!command.environment.empty() || !command.removed.empty()) words.push_back("env");
  for (const auto& name : command.removed) words.push_back("-u " + name);
  for (const auto& [name, value] : command.environment)
    words.push_back(fmt::format("{}={}", name, shell_quoted(value)));
  for (const auto& argument : command.arguments) words.push_back(shell_quoted(argument));
  return join(words, " ");
}

}  // namespace muster::launcher
