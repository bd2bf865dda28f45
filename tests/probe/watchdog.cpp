// A job for test_watchdog.py: every rank walks through the phases with labelled collectives.
// `probe watchdog FOLDER clean`: to the end.
// `probe watchdog FOLDER PHASE inside|outside RANK`: before the phase's last collective every rank prints a line with
// its number and that of its process. outside: RANK never calls it. inside: it calls it, and the last of the other
// ranks only comes after SIGUSR1. From that signal on a rank has a deadline of two seconds. `probe watchdog FOLDER
// alone RANK`: RANK works by itself for longer than the deadline, and reports that it does. `probe watchdog FOLDER
// stuck`: all ranks hang, each by itself. `probe watchdog FOLDER elsewhere`: of three ranks, 1 hangs, 0 waits for it in
// their group, 2 waits for both in the job. `probe watchdog FOLDER crossed`: the same, but 1 does not hang: it waits
// with 2, and all wait for each other.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "distributed/communicator.h"
#include "distributed/watchdog.h"

namespace {

using namespace muster::distributed;

constexpr int kSteps = 70;  // more than a flight record holds

volatile std::sig_atomic_t told = 0;

// Until then nothing is held to a time: how long ranks take to come together is the machine's affair.
void begin_deadline(int) {
  set_deadlines({2, 2, 2, 2});  // stores to atomics
  told = 1;
}

void work(Communicator& ranks, const std::string& phase, bool inside, int victim) {
  const bool is_victim = ranks.rank() == victim;
  const int late = victim == ranks.size() - 1 ? victim - 1 : ranks.size() - 1;
  // Before the collective that the test is about.
  const auto arrive = [&](Phase at) {
    if (phase != name_of(at)) return;
    std::printf("rank %d is process %d\n", ranks.rank(), static_cast<int>(::getpid()));
    std::fflush(stdout);
    if (is_victim && !inside)
      while (true) ::pause();
    while (inside && ranks.rank() == late && !told) ::usleep(10000), report_progress();
  };
  {
    const CollectiveLabel label("settings");
    arrive(Phase::kSetup);
    ranks.all_gather_bytes("settings");
  }
  {
    const PhaseScope scope(Phase::kStep);
    const CollectiveLabel label("gradients");
    for (int step = 0; step < kSteps; ++step) {
      if (step == kSteps - 1) arrive(Phase::kStep);
      ranks.all_reduce_sum(at::zeros({7}));
    }
    const PhaseScope saving(Phase::kSave);
    const CollectiveLabel inner("checkpoint");
    arrive(Phase::kSave);
    ranks.all_reduce_sum(at::zeros({3}, at::kDouble));
  }
  const PhaseScope scope(Phase::kEvaluation);
  const CollectiveLabel label("predictions");
  arrive(Phase::kEvaluation);
  ranks.all_gather_rows(at::zeros({1, 5}), std::vector<int64_t>(ranks.size(), 1));
}

}  // namespace

int watchdog_probe(int argc, char** argv) {
  const auto ranks = connect();
  keep_flight_records_in(argv[1]);
  const std::string what = argv[2];
  if (what == "clean") {
    work(*ranks, "", false, -1);
  } else if (what == "stuck") {
    while (true) ::pause();
  } else if (what == "elsewhere" || what == "crossed") {
    const auto group = ranks->split(ranks->rank() / 2);
    if (ranks->rank() == 1 && what == "elsewhere")
      while (true) ::pause();
    if (ranks->rank() == 0) group->all_reduce_sum(at::zeros({2}));
    ranks->all_reduce_sum(at::zeros({1}));
  } else if (what == "alone") {
    const PhaseScope scope(Phase::kStep);
    set_deadlines({3600, 1, 3600, 3600});
    if (ranks->rank() == std::atoi(argv[3]))
      for (int i = 0; i < 25; ++i) ::usleep(100000), report_progress();
    else
      set_deadlines({3600, 0, 3600, 3600});
    ranks->all_reduce_sum(at::zeros({1}));
  } else {
    std::signal(SIGUSR1, begin_deadline);
    work(*ranks, what, std::strcmp(argv[3], "inside") == 0, std::atoi(argv[4]));
  }
  return 0;
}
