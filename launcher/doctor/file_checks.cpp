#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <future>
#include <map>
#include <numeric>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/input_file.h"
#include "base/text.h"
#include "distributed/watchdog.h"
#include "launcher/doctor/ranks.h"

namespace muster::launcher::doctor {
namespace {

using nlohmann::json;

constexpr double kSightSeconds = 20;
constexpr size_t kSmall = 64 << 10;
constexpr int64_t kChunk = 4 << 20, kMostBytes = 128 << 20;  // kMostBytes: of all ranks together
const std::string kOtherPlace =
    "keep run directories on another file system (--directory tries it): a local disk, NFS, Lustre, GPFS; not a "
    "mounted object store";

class File {
 public:
  File(const std::string& path, int flags) : path_(path), descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) throw_io_error("open", path, errno);
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int descriptor() const { return descriptor_; }
  void write(const std::string& bytes) const { write_all(descriptor_, bytes, path_); }
  void flush() const {
    if (::fsync(descriptor_) != 0) throw_io_error("flush", path_, errno);
  }

 private:
  std::string path_;
  int descriptor_;
};

void write_new(const std::string& path, const std::string& bytes) {
  File(path, O_WRONLY | O_CREAT | O_EXCL).write(bytes);
}

// Rank 0 does something that the others wait for.
void on_first(Ranks& ranks, const std::function<void()>& work, const std::string& fix = kOtherPlace) {
  const auto own = [&] {
    if (ranks.is_first()) work();
    return json();
  };
  ranks.gather(own, fix);
}

// Waits for a file; -1: it never came. Looks again and again, as whoever waits for a checkpoint does.
double seconds_until_seen(const std::string& path) {
  const auto start = Clock::now();
  while (::access(path.c_str(), F_OK) != 0) {
    if (seconds_since(start) > kSightSeconds) return -1;
    distributed::report_progress();
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return seconds_since(start);
}

std::vector<double> seconds_until_seen(Ranks& ranks, const std::string& path) {
  const auto answers = ranks.gather([&] { return json(seconds_until_seen(path)); });
  return {answers.begin(), answers.end()};
}

void check_shared(Ranks& ranks, Finding& finding) {
  if (ranks.folder.empty()) return finding.skip("no folder to try files in");
  const std::string path = ranks.folder + "/here";
  on_first(ranks, [&] { write_new(path, "here"); });
  const auto seconds = seconds_until_seen(ranks, path);
  const auto blind = std::find(seconds.begin(), seconds.end(), -1);
  finding.found = seconds.size() == 1 ? "one rank" : "all ranks see it";
  if (blind == seconds.end()) return;
  ranks.blame(finding, blind - seconds.begin());
  finding.found = "this rank does not see the folder that rank 0 writes to";
  finding.fail("give --directory (and run directories) a path that all machines share, the same on each");
}

// Reads a file that is replaced all the time, and counts what happened.
std::map<std::string, int64_t> read_replaced(const std::string& path, Clock::time_point end) {
  std::map<std::string, int64_t> counts{{"reads", 0}, {"missing", 0}, {"torn", 0}, {"stale", 0}};
  std::string content(kSmall + 1, '\0');
  for (; Clock::now() < end; ++counts["reads"]) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
      ++counts[errno == ENOENT ? "missing" : "stale"];
      continue;
    }
    size_t length = 0;
    ssize_t got = 0;
    while (length <= kSmall && (got = ::read(descriptor, content.data() + length, content.size() - length)) > 0)
      length += static_cast<size_t>(got);
    ::close(descriptor);
    if (got < 0)
      ++counts["stale"];
    else if (length != kSmall || content.find_first_not_of(content[0]) < kSmall)
      ++counts["torn"];
  }
  return counts;
}

// Rank 0 replaces a file again and again while the others read it; a single rank does both.
void check_rename(Ranks& ranks, Finding& finding) {
  const std::string path = ranks.folder + "/replaced", next = path + ".new";
  int64_t renames = 0;
  const auto replace = [&] {
    File(next, O_WRONLY | O_CREAT | O_TRUNC).write(std::string(kSmall, static_cast<char>('a' + renames++ % 26)));
    if (::rename(next.c_str(), path.c_str()) != 0) throw_io_error("rename", next, errno);
  };
  on_first(ranks, replace);
  seconds_until_seen(ranks, path);
  const auto replace_and_read = [&] {
    const auto end = Clock::now() + std::chrono::milliseconds(500);
    std::future<std::map<std::string, int64_t>> reader;
    if (!ranks.is_first() || ranks.communicator.size() == 1)
      reader = std::async(std::launch::async, read_replaced, path, end - std::chrono::milliseconds(20));
    while (ranks.is_first() && Clock::now() < end) replace();
    return reader.valid() ? json(reader.get()) : json::object();
  };
  const auto answers = ranks.gather(replace_and_read, kOtherPlace);
  std::map<std::string, int64_t> sum;
  for (const auto& answer : answers)
    for (const auto& [name, count] : answer.items()) sum[name] += count.get<int64_t>();
  finding.figures = sum;
  finding.figures["renames"] = renames;
  finding.found = fmt::format("{} reads while it was replaced {} times, all whole", sum["reads"], renames);
  if (sum["missing"] + sum["torn"] > 0) {
    finding.found = fmt::format("rename is not atomic: of {} reads {} found no file, {} half of one", sum["reads"],
                                sum["missing"], sum["torn"]);
    finding.fail(kOtherPlace);
  } else if (sum["stale"] > 0) {
    finding.found = fmt::format("{} of {} reads failed while the file was replaced (stale file handles, as on NFS)",
                                sum["stale"], sum["reads"]);
    finding.warn(
        "nothing to do for training, which reads no file while another rank replaces it; scripts that follow "
        "a run should try again");
  }
}

void check_link(Ranks& ranks, Finding& finding) {
  const auto take_twice = [&] {
    int64_t won = 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
      const std::string own = fmt::format("{}/link-{}-{}", ranks.folder, ranks.communicator.rank(), attempt);
      write_new(own, own);
      const bool linked = ::link(own.c_str(), (ranks.folder + "/lock").c_str()) == 0;
      if (!linked && errno != EEXIST) throw_io_error("link", own, errno);
      won += linked;
    }
    return json(won);
  };
  const auto answers = ranks.gather(take_twice, "the run lock needs hard links: " + kOtherPlace);
  int64_t winners = 0;
  for (const auto& won : answers) winners += won.get<int64_t>();
  finding.found = fmt::format("one winner of {} attempts", 2 * answers.size());
  if (winners == 1) return;
  finding.found = fmt::format("{} of {} attempts to take one name succeeded", winners, 2 * answers.size());
  finding.fail("two jobs could write one run: " + kOtherPlace);
}

void check_fsync(Ranks& ranks, Finding& finding) {
  std::vector<double> seconds;
  const auto flush_files = [&] {
    const auto begin = Clock::now();
    for (int i = 0; i < 20 && (i < 3 || seconds_since(begin) < 2); ++i) {
      const auto start = Clock::now();
      const File file(fmt::format("{}/flushed-{}", ranks.folder, i), O_WRONLY | O_CREAT | O_EXCL);
      file.write(std::string(4096, 'f'));
      file.flush();
      File(ranks.folder, O_RDONLY | O_DIRECTORY).flush();
      seconds.push_back(seconds_since(start));
      distributed::report_progress();
    }
  };
  on_first(ranks, flush_files, "a checkpoint that is not flushed is lost with the power: " + kOtherPlace);
  if (!ranks.is_first()) return;
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  finding.figures = {{"median_seconds", median}, {"longest_seconds", seconds.back()}};
  finding.found = fmt::format("{} (longest {}) for a small file and its folder", seconds_text(median),
                              seconds_text(seconds.back()));
  if (median >= 0.1)
    finding.warn(
        "save less often (checkpoints.every_minutes), or keep run directories on a faster file system; a busy "
        "server can be the reason: try again later");
}

std::string data_path(const Ranks& ranks, size_t rank) { return fmt::format("{}/data-{}", ranks.folder, rank); }

// The bytes at `offset` of a rank's file: cheap to compute, different everywhere.
std::string chunk_of(size_t rank, int64_t offset) {
  std::string chunk(kChunk, '\0');
  auto* words = reinterpret_cast<uint64_t*>(chunk.data());
  std::iota(words, words + kChunk / sizeof(uint64_t), static_cast<uint64_t>(offset) * 0x9E3779B97F4A7C15u + rank);
  return chunk;
}

// Total bytes of all ranks divided by the time of the slowest.
void judge_speed(Finding& finding, const std::vector<json>& answers, const char* what) {
  double bytes = 0, seconds = 0;
  for (const auto& answer : answers) {
    bytes += answer["bytes"].get<double>();
    seconds = std::max(seconds, answer["seconds"].get<double>());
  }
  finding.figures = {{"bytes", bytes}, {"seconds", seconds}, {"bytes_per_second", bytes / seconds}};
  finding.found = fmt::format("{}/s ({} {})", size_text(bytes / seconds), size_text(bytes), what);
  if (bytes / seconds < 50e6)
    finding.warn("checkpoints and data will be slow here: see \"load\", try again later, or use a faster file system");
}

void check_write_speed(Ranks& ranks, Finding& finding) {
  const size_t rank = ranks.communicator.rank();
  const auto bound = ranks.gather([&] {
    const auto room = static_cast<int64_t>(free_space(ranks.folder).value_or(Space()).free);
    return json(std::min(kMostBytes, room / 10) / ranks.communicator.size());
  });
  const auto write_all = [&] {
    const auto start = Clock::now();
    const File file(data_path(ranks, rank), O_WRONLY | O_CREAT | O_EXCL);
    int64_t done = 0;
    do {
      file.write(chunk_of(rank, done));
      done += kChunk;
      distributed::report_progress();
    } while (done + kChunk <= bound[0].get<int64_t>() && seconds_since(start) < 5);
    file.flush();
    ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
    return json{{"bytes", done}, {"seconds", seconds_since(start)}};
  };
  const auto answers = ranks.gather(write_all, kOtherPlace);
  for (const auto& answer : answers) ranks.written.push_back(answer["bytes"]);
  judge_speed(finding, answers, "written and flushed");
}

// Each rank reads another rank's file: on another machine it is not cached in memory.
void check_read_speed(Ranks& ranks, Finding& finding) {
  const size_t rank = (ranks.communicator.rank() + 1) % ranks.hosts.size();
  const std::string path = data_path(ranks, rank);
  const auto read_all = [&] {
    if (seconds_until_seen(path) < 0) throw std::runtime_error(path + " does not appear");
    const auto start = Clock::now();
    InputFile file(path);
    std::string content(kChunk, '\0');
    for (int64_t done = 0; done < ranks.written[rank]; done += kChunk) {
      file.read(static_cast<uint64_t>(done), content.data(), kChunk);
      if (content != chunk_of(rank, done)) throw std::runtime_error(path + " has other content than was written");
      distributed::report_progress();
    }
    return json{{"bytes", ranks.written[rank]}, {"seconds", seconds_since(start)}};
  };
  const auto answers = ranks.gather(read_all, "do not trust this file system with results: " + kOtherPlace);
  judge_speed(finding, answers, "read and compared; partly from memory");
}

void check_visibility(Ranks& ranks, Finding& finding) {
  if (ranks.is_alone(finding)) return;
  double longest = 0;
  size_t longest_rank = 0;
  for (int round = 0; round < 5 && longest <= 1; ++round) {
    const std::string target = fmt::format("{}/step-{}", ranks.folder, round), data = target + "/data";
    on_first(ranks, [&] {
      make_folders(target + ".new");
      write_new(target + ".new/data", "data");
    });
    ranks.gather([&] { return json(::access(data.c_str(), F_OK)); });  // NFS remembers that it is not there
    on_first(ranks, [&] { rename_folder(target + ".new", target); });
    const auto seconds = seconds_until_seen(ranks, data);
    for (size_t rank = 1; rank < seconds.size(); ++rank) {
      const double waited = seconds[rank] < 0 ? kSightSeconds : seconds[rank];
      if (waited > longest) longest = waited, longest_rank = rank;
    }
  }
  finding.figures = {{"longest_seconds", longest}};
  finding.found = "at most " + seconds_text(longest);
  if (longest <= 1) return;
  ranks.blame(finding, longest_rank);
  finding.found = longest < kSightSeconds ? seconds_text(longest) + " until this rank saw it"
                                          : "this rank had not seen it after " + seconds_text(kSightSeconds);
  finding.warn(
      "nothing breaks, but a job that starts on another machine may have to wait for the newest checkpoint; "
      "NFS: mount with lookupcache=positive or a shorter acdirmax");
}

}  // namespace

const std::vector<Check<Ranks>> kFileChecks = {
    {"shared", "every rank sees what rank 0 writes", check_shared},
    {"rename", "whoever reads a file that is replaced by rename gets the old or the new one, whole", check_rename,
     "shared"},
    {"link", "link() gives a name to the first who asks: by this the run lock keeps a second job out", check_link,
     "shared"},
    {"fsync", "below 0.1 s for a small file and its folder: what the last step of a checkpoint takes", check_fsync,
     "shared"},
    {"write_speed", "above 50 MB/s, all ranks together", check_write_speed, "shared"},
    {"read_speed", "above 50 MB/s, and what was written", check_read_speed, "write_speed"},
    {"visibility", "a folder that rank 0 renames is there for the others within 1 s", check_visibility, "shared"},
};

}  // namespace muster::launcher::doctor
