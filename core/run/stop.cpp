#include "core/run/stop.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "base/error.h"

namespace muster::run {
namespace {

volatile std::sig_atomic_t received = 0;
volatile std::sig_atomic_t saves = 0;

extern "C" void handle_stop(int signal) {
  received = signal;
  if (saves) return;
  if (signal == SIGUSR1 || signal == SIGUSR2) _exit(static_cast<int>(ExitCode::kRequeue));
  std::signal(signal, SIG_DFL);
  raise(signal);
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = handle_stop;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) {
    struct sigaction inherited = {};
    sigaction(signal, nullptr, &inherited);
    if (signal == SIGINT && inherited.sa_handler == SIG_IGN)
      continue;  // a script's background job: Ctrl-C is for others
    action.sa_flags = SA_RESTART | (signal == SIGINT ? SA_RESETHAND : 0);
    sigaction(signal, &action, nullptr);
  }
}

void save_on_stop() { saves = 1; }

int stop_signal() { return received; }

std::string stop_request(int rank, int ranks) {
  const int signal = stop_signal();
  if (signal == 0) return "";
  return name_of_signal(signal) + (ranks > 1 ? fmt::format(" (rank {})", rank) : "");
}

std::string name_of_signal(int signal) {
  const char* name = sigabbrev_np(signal);
  return name ? fmt::format("SIG{}", name) : fmt::format("signal {}", signal);
}

}  // namespace muster::run
