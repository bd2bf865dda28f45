#include "launcher/launch/run_logs.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/files.h"

namespace muster::launcher {
namespace {

constexpr size_t kMostHeld = 4 << 20;
constexpr size_t kMostOfStarter = 16 << 10;
constexpr int kNobody = -2;

}  // namespace

RunLogs::RunLogs(const std::string& run_directory, const std::string& header, bool is_ours)
    : run_directory_(run_directory), header_(header), begun_(is_ours) {
  before_ = newest_file();
}

std::optional<RunLogs::Identity> RunLogs::newest_file() const {
  struct stat info;
  if (run_directory_.empty()) return std::nullopt;
  if (stat((run_directory_ + "/environment.json").c_str(), &info) != 0 &&
      stat((run_directory_ + "/search.txtpb").c_str(), &info) != 0)
    return std::nullopt;
  return Identity{info.st_ino, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

void RunLogs::add(int rank, const std::string& text) {
  if (run_directory_.empty() || failed_ || text.empty()) return;
  if (held_ + text.size() > kMostHeld && begun_) write(true);
  if (held_ + text.size() > kMostHeld) {
    left_out_ += text.size();
    return;
  }
  held_ += text.size();
  const auto [found, is_first] = texts_.try_emplace(rank);
  if (is_first && !within_line_.count(rank)) found->second = header_ + "\n";
  found->second += text;
  within_line_[rank] = text.back() != '\n';
}

void RunLogs::write(bool now) {
  if (run_directory_.empty() || failed_ || texts_.empty()) return;
  const auto time = std::chrono::steady_clock::now();
  if (!now && time - looked_ < std::chrono::milliseconds(100)) return;
  looked_ = time;
  if (!begun_) {
    const auto found = newest_file();
    begun_ = found && (!before_ || found->file != before_->file || found->seconds != before_->seconds ||
                       found->nanoseconds != before_->nanoseconds);
    if (!begun_) return;
  }
  for (const auto& [rank, text] : std::exchange(texts_, {})) {
    const std::string path = run_directory_ + "/logs/rank-" + std::to_string(rank) + ".log";
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    const bool written = file >= 0 && try_write_all(file, text) == 0;
    const int error = errno;
    if (file >= 0) close(file);
    if (written) continue;
    failed_ = true;
    std::fprintf(stderr, "muster: %s cannot be written (%s); the job goes on without it\n", path.c_str(),
                 std::strerror(error));
    return;
  }
  held_ = 0;
}

void RunLogs::finish() {
  for (auto& [rank, is_within] : within_line_)
    if (std::exchange(is_within, false)) texts_[rank] += "\n";
  if (left_out_ > 0)
    texts_[0] += "(" + std::to_string(left_out_) +
                 " bytes of the ranks' output, from before the run directory was there, are not in these logs)\n";
  write(true);
}

RankOutput::RankOutput(const JobCommand& job, RunLogs logs)
    : logs_(std::move(logs)),
      out_(job.starter, "stdout", job.ranks,
           [this](int rank, const std::string& text) { show(Stream::kOutput, rank, text); }),
      err_(job.starter, "stderr", job.ranks,
           [this](int rank, const std::string& text) { show(Stream::kError, rank, text); }) {}

void RankOutput::take(Stream stream, const std::string& bytes) {
  (stream == Stream::kOutput ? out_ : err_).take(bytes);
  logs_.write(false);
}

void RankOutput::finish() {
  out_.finish();
  err_.finish();
  for (const auto stream : {Stream::kOutput, Stream::kError}) {
    const auto within = within_line_.find(static_cast<int>(stream));
    // What the first rank writes to standard output may go into a file: not a byte is added there.
    const bool exact = stream == Stream::kOutput && within != within_line_.end() && within->second == 0;
    if (within != within_line_.end() && within->second != kNobody && !exact)
      try_write_all(static_cast<int>(stream), "\n");
  }
  within_line_.clear();
  logs_.finish();
}

void RankOutput::show(Stream stream, int rank, const std::string& text) {
  if (rank >= 0) {
    ranks_have_spoken_ = true;
    logs_.add(rank, text);
  } else if (stream == Stream::kError) {
    starter_says_ += text;
    if (starter_says_.size() > kMostOfStarter) starter_says_.erase(0, starter_says_.size() - kMostOfStarter);
  }
  int& within = within_line_.try_emplace(static_cast<int>(stream), kNobody).first->second;
  std::string shown;
  if (within != kNobody && within != rank) shown = "\n";
  if (rank > 0 && within != rank) shown += "[rank " + std::to_string(rank) + "] ";
  try_write_all(static_cast<int>(stream), shown + text);
  within = text.back() == '\n' ? kNobody : rank;
}

}  // namespace muster::launcher
