#include "launcher/launch/rank_output.h"

#include <cctype>
#include <utility>

namespace muster::launcher {
namespace {

constexpr const char* kBeforeRank = "[1,";
constexpr size_t kLongestMark = 32;
constexpr size_t kLongLine = 1 << 16;      // of marked output, from which on it is taken apart before its end has come
constexpr size_t kLongestPiece = 1 << 20;  // of a rank's line
constexpr size_t kPieceOfSrun = 1024;      // SLURM_IO_MAX_MSG_LEN

}  // namespace

LabelReader::LabelReader(LaunchBackend starter, const std::string& stream_name, int ranks, Sink sink)
    : starter_(starter), after_rank_("]<" + stream_name + ">:"), ranks_(ranks), sink_(std::move(sink)) {}

void LabelReader::take(const std::string& bytes) {
  raw_ += bytes;
  size_t start = 0;
  for (size_t end; (end = raw_.find('\n', start)) != std::string::npos; start = end + 1)
    take_line(raw_.substr(start, end + 1 - start));
  raw_.erase(0, start);
  if (raw_.size() <= kLongLine || starter_ == LaunchBackend::kSrun) return;
  // Up to the last mark, which goes on; the next may have come in part.
  Mark last{kStarter, 0, 0};
  for (Mark mark = find_mark(raw_, 0); mark.rank != kStarter; mark = find_mark(raw_, mark.end)) last = mark;
  if (last.rank == kStarter || raw_.size() - last.end <= kLongestMark) return;
  const size_t whole = raw_.size() - kLongestMark;
  take_line(raw_.substr(0, whole));
  raw_ = raw_.substr(last.begin, last.end - last.begin) + raw_.substr(whole);
}

void LabelReader::finish() {
  if (!raw_.empty()) take_line(std::exchange(raw_, ""));
  for (auto& [rank, text] : pending_)
    if (!text.empty()) sink_(rank, std::exchange(text, ""));
}

LabelReader::Mark LabelReader::find_mark(const std::string& text, size_t from) const {
  for (size_t begin = text.find(kBeforeRank, from); begin != std::string::npos;
       begin = text.find(kBeforeRank, begin + 1)) {
    size_t end = begin + std::char_traits<char>::length(kBeforeRank);
    int rank = 0;
    const size_t digits = end;
    while (end < text.size() && end < digits + 7 && std::isdigit(static_cast<unsigned char>(text[end])))
      rank = rank * 10 + (text[end++] - '0');
    if (end > digits && rank < ranks_ && text.compare(end, after_rank_.size(), after_rank_) == 0)
      return {rank, begin, end + after_rank_.size()};
  }
  return {kStarter, text.size(), text.size()};
}

void LabelReader::take_line(const std::string& line) {
  if (starter_ == LaunchBackend::kSrun) return take_line_of_srun(line);
  Mark mark = find_mark(line, 0);
  if (mark.begin > 0) add(kStarter, line.substr(0, mark.begin));
  while (mark.rank != kStarter) {
    const Mark next = find_mark(line, mark.end);
    add(mark.rank, line.substr(mark.end, next.begin - mark.end));
    mark = next;
  }
}

void LabelReader::take_line_of_srun(const std::string& line) {
  size_t at = 0;
  while (at < line.size() && line[at] == ' ') ++at;
  const size_t digits = at;
  int rank = 0;
  while (at < line.size() && at < digits + 7 && std::isdigit(static_cast<unsigned char>(line[at])))
    rank = rank * 10 + (line[at++] - '0');
  if (at == digits || rank >= ranks_ || line.compare(at, 2, ": ") != 0) return add(kStarter, line);
  const std::string text = line.substr(at + 2);
  const bool goes_on = text.size() == kPieceOfSrun + 1;
  add(rank, goes_on ? text.substr(0, kPieceOfSrun) : text);
}

void LabelReader::add(int rank, const std::string& text) {
  std::string& line = pending_[rank];
  line += text;
  if (!line.empty() && (line.back() == '\n' || line.size() > kLongestPiece)) sink_(rank, std::exchange(line, ""));
}

}  // namespace muster::launcher
