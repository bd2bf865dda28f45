#include "core/run/progress.h"

#include <unistd.h>

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#include "base/print.h"
#include "base/text.h"

namespace muster::run {
Progress::Progress(bool visible) : visible_(visible), terminal_(isatty(STDERR_FILENO) != 0) {}

void Progress::step(uint64_t step, uint64_t total_steps, int64_t epoch, int64_t epochs, double loss,
                    double samples_per_second) {
  if (!visible_) return;
  const auto now = Clock::now();
  if (!any_step_) {
    any_step_ = true;
    first_step_ = step;
    start_ = now;
  }
  advise(now, step, total_steps);
  if (!due()) return;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double per_step = step > first_step_ ? elapsed / static_cast<double>(step - first_step_) : 0;
  const std::string numbers =
      fmt::format("step {}/{}  epoch {}/{}  loss {:.4f}  {:.1f} samples/s  left {}", step, total_steps, epoch, epochs,
                  loss, samples_per_second, duration_text(per_step * static_cast<double>(total_steps - step)));
  if (terminal_) {
    constexpr int kWidth = 24;
    std::string bar(kWidth, '.');
    const auto filled = static_cast<size_t>(kWidth * static_cast<double>(step) / static_cast<double>(total_steps));
    bar.replace(0, filled, filled, '#');
    std::fputs(fmt::format("\r[{}] {}\033[K", bar, numbers).c_str(), stderr);
    drawn_ = true;
  } else {
    std::fputs((numbers + "\n").c_str(), stderr);
  }
  std::fflush(stderr);
}

void Progress::advise_if_long(int idle_cores, const std::string& text) {
  idle_cores_ = idle_cores;
  advice_ = text;
}

void Progress::advise(Clock::time_point now, uint64_t step, uint64_t total_steps) {
  constexpr double kAWhile = 20, kMinutes = 180;  // seconds
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  if (advice_.empty() || elapsed < kAWhile || step == first_step_) return;
  double load = 0;  // processes that ran or waited for a core, mean of the last minute; of this one less so far
  const double left = elapsed / static_cast<double>(step - first_step_) * static_cast<double>(total_steps - step);
  const bool is_idle = getloadavg(&load, 1) == 1 && load < idle_cores_;
  if (left > kMinutes && is_idle) line(advice_);
  advice_.clear();
}

bool Progress::due() {
  const auto now = Clock::now();
  if (std::chrono::duration<double>(now - last_).count() < (terminal_ ? 0.2 : 10.0)) return false;
  last_ = now;
  return true;
}

void Progress::work(const std::string& what, int64_t done, int64_t total) {
  if (!visible_ || !due()) return;
  std::fprintf(stderr, terminal_ ? "\r%s %ld/%ld\033[K" : "%s %ld/%ld\n", what.c_str(), done, total);
  std::fflush(stderr);
  drawn_ = terminal_;
}

void Progress::line(const std::string& text) {
  if (!visible_) return;
  clear();
  print_error("{}\n", text);
  std::fflush(stderr);
}

void Progress::clear() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace muster::run
