#include "core/run/stop.h"

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <regex>

namespace muster::run {
namespace {

volatile std::sig_atomic_t received = 0;

extern "C" void remember(int signal) { received = signal; }

}  // namespace

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = remember;
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

int stop_signal() { return received; }

std::string name_of_signal(int signal) {
  const char* name = sigabbrev_np(signal);
  return name ? std::string("SIG") + name : "signal " + std::to_string(signal);
}

std::optional<double> parse_duration(const std::string& text) {
  static const std::regex units(R"((?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?)"),
      minutes(R"(\d{1,9})"), clock(R"((?:(\d{1,6})-)?(\d{1,6}):(\d{1,2})(?::(\d{1,2}))?)");
  std::smatch match;
  const auto number = [&](int group) { return match[group].matched ? std::atof(match[group].str().c_str()) : 0.0; };
  double seconds = 0;
  if (std::regex_match(text, match, minutes)) {
    seconds = 60 * number(0);
  } else if (std::regex_match(text, match, clock)) {
    // Slurm: "hours:minutes:seconds", "minutes:seconds", "days-hours:minutes[:seconds]".
    const bool hours_first = match[1].matched || match[4].matched;
    seconds =
        86400 * number(1) + (hours_first ? 3600 * number(2) + 60 * number(3) + number(4) : 60 * number(2) + number(3));
  } else if (!text.empty() && std::regex_match(text, match, units)) {
    seconds = 86400 * number(1) + 3600 * number(2) + 60 * number(3) + number(4);
  } else {
    return std::nullopt;
  }
  if (seconds <= 0) return std::nullopt;
  return seconds;
}

}  // namespace muster::run
