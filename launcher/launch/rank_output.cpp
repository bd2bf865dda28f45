#include "launcher/launch/rank_output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <regex>
#include <utility>

#include "base/files.h"
#include "base/text.h"

namespace muster::launcher {
namespace {

constexpr const char* kBeforeRank = "[1,";
constexpr size_t kLongestLabel = 32;
constexpr size_t kLongLine = 1 << 16;      // of labelled output: a longer line is split before its end is there
constexpr size_t kLongestPiece = 1 << 20;  // of a rank's line
constexpr size_t kSrunPiece = 1024;        // SLURM_IO_MAX_MSG_LEN
constexpr size_t kMostHeld = 4 << 20;
constexpr size_t kMostBackendErrors = 16 << 10;
constexpr int kNobody = -2;

// The number that begins at `at`, which is moved behind it; -1: there is none.
int take_number(const std::string& text, size_t& at) {
  const size_t begin = at;
  int number = 0;
  while (at < text.size() && at < begin + 7 && std::isdigit(static_cast<unsigned char>(text[at])))
    number = number * 10 + (text[at++] - '0');
  return at == begin ? -1 : number;
}

}  // namespace

LabelReader::LabelReader(LaunchBackend backend, const std::string& stream_name, int ranks, Sink sink)
    : backend_(backend), after_rank_("]<" + stream_name + ">:"), ranks_(ranks), sink_(std::move(sink)) {}

void LabelReader::take(const std::string& bytes) {
  raw_ += bytes;
  size_t start = 0;
  for (size_t end; (end = raw_.find('\n', start)) != std::string::npos; start = end + 1)
    take_line(raw_.substr(start, end + 1 - start));
  raw_.erase(0, start);
  if (raw_.size() <= kLongLine || backend_ == LaunchBackend::kSrun) return;
  // Up to the last label's text, which continues; the next label may be there in part.
  Label last{kBackend, 0, 0};
  for (Label label = find_label(raw_, 0); label.rank != kBackend; label = find_label(raw_, label.end)) last = label;
  if (last.rank == kBackend || raw_.size() - last.end <= kLongestLabel) return;
  const size_t whole = raw_.size() - kLongestLabel;
  take_line(raw_.substr(0, whole));
  raw_ = raw_.substr(last.begin, last.end - last.begin) + raw_.substr(whole);
}

void LabelReader::finish() {
  if (!raw_.empty()) take_line(std::exchange(raw_, ""));
  for (auto& [rank, text] : pending_)
    if (!text.empty()) sink_(rank, std::exchange(text, ""));
}

LabelReader::Label LabelReader::find_label(const std::string& text, size_t from) const {
  for (size_t begin = text.find(kBeforeRank, from); begin != std::string::npos;
       begin = text.find(kBeforeRank, begin + 1)) {
    size_t end = begin + std::char_traits<char>::length(kBeforeRank);
    const int rank = take_number(text, end);
    if (rank >= 0 && rank < ranks_ && text.compare(end, after_rank_.size(), after_rank_) == 0)
      return {rank, begin, end + after_rank_.size()};
  }
  return {kBackend, text.size(), text.size()};
}

void LabelReader::take_line(const std::string& line) {
  if (backend_ == LaunchBackend::kSrun) return take_srun_line(line);
  Label label = find_label(line, 0);
  if (label.begin > 0) add(kBackend, line.substr(0, label.begin));
  while (label.rank != kBackend) {
    const Label next = find_label(line, label.end);
    add(label.rank, line.substr(label.end, next.begin - label.end));
    label = next;
  }
}

void LabelReader::take_srun_line(const std::string& line) {
  size_t at = std::min(line.find_first_not_of(' '), line.size());
  const int rank = take_number(line, at);
  if (rank < 0 || rank >= ranks_ || line.compare(at, 2, ": ") != 0) return add(kBackend, line);
  const std::string text = line.substr(at + 2);
  const bool continues = text.size() == kSrunPiece + 1;
  add(rank, continues ? text.substr(0, kSrunPiece) : text);
}

void LabelReader::add(int rank, const std::string& text) {
  std::string& line = pending_[rank];
  line += text;
  if (!line.empty() && (line.back() == '\n' || line.size() > kLongestPiece)) sink_(rank, std::exchange(line, ""));
}

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
    dropped_ += text.size();
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
  if (!now && time - last_write_ < std::chrono::milliseconds(100)) return;
  last_write_ = time;
  if (!begun_) {
    const auto found = newest_file();
    begun_ = found && found != before_;
    if (!begun_) return;
  }
  for (const auto& [rank, text] : std::exchange(texts_, {})) {
    const std::string path = fmt::format("{}/logs/rank-{}.log", run_directory_, rank);
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0666);
    const int error = file >= 0 ? try_write_all(file, text) : errno;
    if (file >= 0) close(file);
    if (error == 0) continue;
    failed_ = true;
    std::fprintf(stderr, "muster: %s cannot be written (%s); the job continues without it\n", path.c_str(),
                 std::strerror(error));
    return;
  }
  held_ = 0;
}

void RunLogs::finish() {
  for (auto& [rank, is_within] : within_line_)
    if (std::exchange(is_within, false)) texts_[rank] += "\n";
  if (dropped_ > 0)
    texts_[0] += fmt::format(
        "({} bytes that the ranks wrote before they had taken the run directory are missing from these logs)\n",
        dropped_);
  write(true);
}

RankOutput::RankOutput(const JobCommand& job, RunLogs logs)
    : logs_(std::move(logs)),
      out_(job.backend, "stdout", job.ranks,
           [this](int rank, const std::string& text) { show(Stream::kOutput, rank, text); }),
      err_(job.backend, "stderr", job.ranks,
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
    ranks_have_written_ = true;
    logs_.add(rank, text);
  } else if (stream == Stream::kError) {
    backend_errors_ += text;
    if (backend_errors_.size() > kMostBackendErrors)
      backend_errors_.erase(0, backend_errors_.size() - kMostBackendErrors);
  }
  int& within = within_line_.try_emplace(static_cast<int>(stream), kNobody).first->second;
  std::string shown;
  if (within != kNobody && within != rank) shown = "\n";
  if (rank > 0 && within != rank) shown += fmt::format("[rank {}] ", rank);
  try_write_all(static_cast<int>(stream), shown + text);
  within = text.back() == '\n' ? kNobody : rank;
}

std::string explain_backend_errors(const std::string& errors, const JobCommand& job) {
  // What a backend writes (a pattern), and what helps; {} is the number of ranks.
  static const std::pair<const char*, const char*> known[] = {
      {"not enough slots available",
       "mpirun does not have enough slots for {} (its message is above). Give fewer ranks (-n) or more slots (--hosts "
       "a:4,b:4), or add --oversubscribe to let ranks share cores"},
      {"unable to reliably start one or more daemons|ORTE does not know how to route",
       "mpirun could not start its daemon on another host (its message is above). Each host must be reachable by ssh "
       "without a password, have the same Open MPI under the same path, and be able to connect back: try `ssh HOST "
       "true`, then `muster doctor --hosts ...`"},
      {"More processors requested than permitted|Requested node configuration is not available",
       "this Slurm allocation is too small for {} (srun's message is above). Give fewer ranks (-n), ask for a larger "
       "allocation, or add --oversubscribe"},
      {"Invalid MPI plugin|invalid MPI type",
       "this Slurm offers no PMIx (srun's message is above). Use --backend mpirun"},
  };
  for (const auto& [pattern, help] : known)
    if (std::regex_search(errors, std::regex(pattern)))
      return fmt::format(fmt::runtime(help), plural(job.ranks, "rank"));
  return "";
}

bool has_lost_a_host(const std::string& errors) {
  return errors.find("ORTE has lost communication with a remote daemon") != std::string::npos;
}

}  // namespace muster::launcher
