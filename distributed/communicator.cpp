#include "distributed/communicator.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/host.h"
#include "base/text.h"
#include "distributed/checked_communicator.h"

namespace muster::distributed {
namespace {

constexpr size_t kLongestSent = 4096;  // of longer values a checksum is compared
constexpr size_t kLongestShown = 120;
constexpr size_t kMostHosts = 4;

std::string compared_form(const std::string& value) {
  if (value.size() <= kLongestSent) return value;
  return fmt::format("{}#{}#{}", value.substr(0, kLongestSent), value.size(),
                     hash_of(std::vector<int64_t>(value.begin(), value.end())));
}

std::string shown(const std::string& value) {
  const auto printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (value.size() > kLongestShown || !std::all_of(value.begin(), value.end(), printable)) return "another value";
  return fmt::format("\"{}\"", value);
}

int number_in_environment(const std::string& name) {
  const char* text = std::getenv(name.c_str());
  return text ? std::atoi(text) : 0;
}

// The step of `srun --pty bash` may have any number of tasks: a command that its user types is not one of its ranks.
bool is_typed_into_a_shell() {
  return std::getenv("SLURM_PTY_PORT") && number_in_environment("SLURM_PROCID") == 0 &&
         number_in_environment("SLURM_TASK_PID") != getpid();
}

struct Start {
  std::string starter;
  int ranks, rank;
};

// mpirun comes first: inside a Slurm job it starts its own daemons by srun, one task per node.
Start how_started() {
  for (const std::string name : {"OMPI_COMM_WORLD_", "PMI_"})
    if (const int ranks = number_in_environment(name + "SIZE"))
      return {"mpirun", ranks, number_in_environment(name + "RANK")};
  if (is_typed_into_a_shell()) return {"srun", 1, 0};
  return {"srun", number_in_environment("SLURM_STEP_NUM_TASKS"), number_in_environment("SLURM_PROCID")};
}

// Checks its arguments like the other backends do, so that a mistake shows with one rank already.
class SingleProcessCommunicator final : public CheckedCommunicator {
 public:
  SingleProcessCommunicator() : CheckedCommunicator(world_names(1), 0) {}
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  [[noreturn]] void abort(ExitCode code) override { std::_Exit(static_cast<int>(code)); }

 private:
  const std::vector<CollectiveCall>& meet(const CollectiveCall& own) override {
    calls_[0] = own;
    return calls_;
  }
  void sum_body(const at::Tensor&) override {}
  void gather_body(const at::Tensor& rows, const std::vector<int64_t>&, const at::Tensor& gathered) override {
    gathered.copy_(rows.detach());
  }
  void exchange_body(const at::Tensor& rows, const std::vector<int64_t>&, const std::vector<int64_t>&,
                     const at::Tensor& received) override {
    received.copy_(rows.detach());
  }
  void broadcast_body(const at::Tensor&, int) override {}
  std::vector<std::string> bytes_body(const std::string& bytes, const std::vector<int64_t>&) override {
    return {bytes};
  }
  std::unique_ptr<Communicator> split_body(int, const std::vector<int>&, RankNames) override {
    return make_single_process_communicator();
  }
  void require_device(const at::Tensor&) const override {}

  std::vector<CollectiveCall> calls_{1};
};

}  // namespace

int expected_world_size() { return std::max(1, how_started().ranks); }

int expected_rank() { return how_started().ranks > 1 ? how_started().rank : 0; }

std::unique_ptr<Communicator> connect() {
  const auto [starter, promised, rank] = how_started();
  if (promised <= 1) return make_single_process_communicator();
  // Open MPI would print a message of its own, for whoever builds it, on every rank.
  if (starter == "srun" && !std::getenv("PMIX_RANK"))
    throw Error(ExitCode::kUsage,
                fmt::format("srun started {} processes without PMIx, so that each would train a model of its own. Add "
                            "--mpi=pmix (srun --mpi=list shows what your Slurm offers).",
                            promised));
  auto communicator = make_mpi_communicator();
  if (communicator->size() != promised)
    throw Error(ExitCode::kUsage,
                fmt::format("{} started {} processes, but MPI sees only {}: each would train a model of its own. Start "
                            "them by the mpirun, or the PMIx, that belongs to the Open MPI that muster was built with.",
                            starter, promised, communicator->size()));
  return communicator;
}

std::unique_ptr<Communicator> make_single_process_communicator() {
  return std::make_unique<SingleProcessCommunicator>();
}

void run_on_all_ranks(Communicator& communicator, const std::function<void()>& work) {
  // First byte: 'k' for success, otherwise the exit code; then the message.
  std::string outcome = "k";
  try {
    work();
  } catch (const Error& error) {
    outcome = fmt::format("{}{}", static_cast<char>(error.code()), error.what());
  } catch (const std::exception& error) {
    outcome = fmt::format("{}{}", static_cast<char>(ExitCode::kInternal), error.what());
  }
  const auto outcomes = communicator.all_gather_bytes(outcome);
  const auto failed = [](const std::string& o) { return o != "k"; };
  const auto first = std::find_if(outcomes.begin(), outcomes.end(), failed);
  if (first == outcomes.end()) return;
  std::string message;
  if (std::all_of(outcomes.begin(), outcomes.end(), [&](const std::string& o) { return o == *first; })) {
    message = first->substr(1);
  } else {
    for (size_t rank = 0; rank < outcomes.size(); ++rank) {
      if (!failed(outcomes[rank])) continue;
      if (!message.empty()) message += "\n";
      message += fmt::format("rank {} of {}: {}", rank, outcomes.size(), outcomes[rank].substr(1));
    }
  }
  throw SharedError(static_cast<ExitCode>((*first)[0]), message);
}

void require_same(Communicator& communicator, const std::string& what, const std::string& value,
                  const std::string& advice, ExitCode code) {
  std::vector<std::string> hosts, values;
  for (const auto& text : communicator.all_gather_bytes(host_name() + '\0' + compared_form(value))) {
    hosts.push_back(text.substr(0, text.find('\0')));
    values.push_back(text.substr(text.find('\0') + 1));
  }
  const auto groups = groups_of_same(communicator.size(), [&](int a, int b) { return values[a] == values[b]; });
  if (groups.size() == 1) return;
  const std::string differences = contrast(groups, [&](const std::vector<int>& group, bool is_majority) {
    std::vector<std::string> names;
    for (const int rank : group)
      if (std::find(names.begin(), names.end(), hosts[rank]) == names.end()) names.push_back(hosts[rank]);
    if (names.size() > kMostHosts) names.resize(kMostHosts), names.push_back("...");
    return fmt::format("{}{} {} {}", list_ranks(group), is_majority ? "" : fmt::format(" (host {})", join(names)),
                       group.size() > 1 ? "have" : "has", shown(values[group[0]]));
  });
  throw SharedError(code, fmt::format("{} differs between ranks: {}. {}", what, differences, advice));
}

}  // namespace muster::distributed
