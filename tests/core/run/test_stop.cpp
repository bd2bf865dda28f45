#include <gtest/gtest.h>

#include <csignal>

#include "base/text.h"
#include "core/run/stop.h"

namespace muster::run {
namespace {

TEST(Stop, Durations) {
  // As documented by `man sbatch` for --time where there is a colon or no unit.
  const std::vector<std::pair<std::string, double>> right{{"3h55m", 14100},   {"90s", 90},          {"45", 2700},
                                                          {"1d12h", 129600},  {"3:55:00", 14100},   {"55:30", 3330},
                                                          {"1-02:30", 95400}, {"1-00:00:05", 86405}};
  for (const auto& [text, seconds] : right) EXPECT_EQ(parse_duration(text).value_or(-1), seconds) << text;
  for (const char* text : {"", "0", "h", "3x", "m5", "-3h", "5m3h", "1.5h", " 3h", "999999999999999s"})
    EXPECT_FALSE(parse_duration(text)) << text;
}

TEST(Stop, SignalsAreRememberedAndASecondInterruptEnds) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        save_on_stop();
        for (const int signal : {SIGTERM, SIGUSR1, SIGUSR2, SIGINT}) {
          raise(signal);
          if (stop_signal() != signal) _exit(1);
        }
        raise(SIGINT);
        _exit(2);
      },
      testing::KilledBySignal(SIGINT), "");
  EXPECT_EQ(name_of_signal(SIGUSR1), "SIGUSR1");
}

TEST(Stop, BeforeThereIsAnythingToSaveTheProcessEnds) {
  const auto stopped_by = [](int signal) {
    catch_stop_signals();
    raise(signal);
    _exit(1);
  };
  for (const int signal : {SIGTERM, SIGINT}) EXPECT_EXIT(stopped_by(signal), testing::KilledBySignal(signal), "");
  for (const int signal : {SIGUSR1, SIGUSR2}) EXPECT_EXIT(stopped_by(signal), testing::ExitedWithCode(75), "");
}

}  // namespace
}  // namespace muster::run
