#include "launcher/work/progress_line.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace muster::launcher {

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0) {}

void ProgressLine::end() {
  if (!waiting_.empty()) write();
  if (std::exchange(drawn_, false)) std::fputs("\n", stderr);
  std::fflush(stderr);
}

void ProgressLine::show(const std::string& text) {
  waiting_ = text;
  if (Clock::now() - last_ >= std::chrono::milliseconds(terminal_ ? 100 : 1000)) write();
}

void ProgressLine::note(const std::string& text) {
  if (std::exchange(drawn_, false)) std::fputs("\r\033[K", stderr);
  std::fprintf(stderr, "%s\n", text.c_str());
  std::fflush(stderr);
}

void ProgressLine::write() {
  last_ = Clock::now();
  std::string text = std::exchange(waiting_, "");
  if (terminal_) {
    winsize size = {};
    const size_t width = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1
                             ? size.ws_col - 1
                             : 79;  // a longer line could not be rewritten
    if (text.size() > width) text.resize(width);
    std::fprintf(stderr, "\r%s\033[K", text.c_str());
    drawn_ = true;
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
  std::fflush(stderr);
}

}  // namespace muster::launcher
