#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace muster::run {

// What a person sees during a run: on a terminal one line that rewrites itself, otherwise a plain line every few
// seconds. Goes to standard error, so that standard output holds results only.
class Progress {
 public:
  // visible: true on one rank only.
  explicit Progress(bool visible);
  ~Progress() { clear(); }

  void step(uint64_t step, uint64_t total_steps, int64_t epoch, int64_t epochs, double loss, double samples_per_second);
  // Shown once, when steps have been made for a while, minutes of them are left and this machine has so many idle
  // cores: more ranks make a short run, or one on a busy machine, slower.
  void advise_if_long(int idle_cores, const std::string& text);
  // The same for work before training, such as reading all features once: "checking features 120/600".
  void work(const std::string& what, int64_t done, int64_t total);
  // A whole line of its own, above the rewriting one.
  void line(const std::string& text);
  // Removes the rewriting line.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  // Whether enough time has passed to show something again.
  bool due();
  void advise(Clock::time_point now, uint64_t step, uint64_t total_steps);
  bool visible_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = Clock::now();
  uint64_t first_step_ = 0;
  bool any_step_ = false;
  int idle_cores_ = 0;
  std::string advice_;
};

}  // namespace muster::run
