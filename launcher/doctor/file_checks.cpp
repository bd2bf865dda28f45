#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <map>
#include <numeric>
#include <thread>

#include "base/atomic_file.h"
#include "base/files.h"
#include "base/input_file.h"
#include "base/text.h"
#include "distributed/watchdog.h"
#include "launcher/doctor/ranks.h"

namespace muster::launcher::doctor {
namespace {

using nlohmann::json;
using Counts = std::map<std::string, int64_t>;

constexpr double kSightSeconds = 20;
constexpr size_t kSmall = 64 << 10;
constexpr uint64_t kChunk = 4 << 20, kMostBytes = 128 << 20;  // kMostBytes: of all ranks together
const std::string kOtherPlace =
    "keep run directories on another file system (--directory tries it): a local disk, NFS, Lustre, GPFS; not a "
    "mounted object store";

// Not flushed: only "fsync" and "write_speed" need that to work.
void write_file(const std::string& path, const std::string& bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const int error = file < 0 ? errno : try_write_all(file, bytes);
  if (file >= 0) ::close(file);
  if (error != 0) throw_io_error("write", path, error);
}

// Rank 0 does something that the others wait for.
void on_first(Ranks& ranks, const std::function<void()>& work, const std::string& fix = kOtherPlace) {
  const auto own = [&] {
    if (ranks.is_first()) work();
    return json();
  };
  ranks.gather(own, fix);
}

// Waits for a file, for kSightSeconds at most. Looks again and again, as whoever waits for a checkpoint does.
double seconds_until_seen(const std::string& path) {
  const auto start = Clock::now();
  while (::access(path.c_str(), F_OK) != 0 && seconds_since(start) < kSightSeconds) {
    distributed::report_progress();
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return seconds_since(start);
}

// The longest time that a rank had to wait for a file, and which.
std::pair<double, size_t> longest_until_seen(Ranks& ranks, const std::string& path) {
  const auto seconds = ranks.gather([&] { return json(seconds_until_seen(path)); });
  const auto longest = std::max_element(seconds.begin(), seconds.end());
  return {longest->get<double>(), longest - seconds.begin()};
}

void check_shared(Ranks& ranks, Finding& finding) {
  if (ranks.folder.empty()) return finding.skip("no folder to try files in");
  const std::string path = ranks.folder + "/here";
  on_first(ranks, [&] { write_file(path, "here"); });
  const auto [seconds, rank] = longest_until_seen(ranks, path);
  finding.found = ranks.hosts.size() == 1 ? "one rank" : "all ranks see it";
  if (seconds < kSightSeconds) return;
  ranks.blame(finding, rank);
  finding.found = "this rank does not see the folder that rank 0 writes to";
  finding.fail("give --directory (and run directories) a path that all machines share, the same on each");
}

// Reads a file that is replaced all the time, and counts what happened.
Counts read_replaced(const std::string& path, Clock::time_point end) {
  Counts counts{{"reads", 0}, {"missing", 0}, {"torn", 0}, {"stale", 0}};
  for (; Clock::now() < end; ++counts["reads"]) {
    try {
      const std::string content = read_file(path, 2 * kSmall);
      counts["torn"] += content.size() != kSmall || content.find_first_not_of(content[0]) != std::string::npos;
    } catch (const Error& error) {
      ++counts[std::strstr(error.what(), std::strerror(ENOENT)) ? "missing" : "stale"];
    }
  }
  return counts;
}

// Rank 0 replaces a file again and again while all read it.
void check_rename(Ranks& ranks, Finding& finding) {
  const std::string path = ranks.folder + "/replaced", next = path + ".new";
  int64_t renames = 0;
  const auto replace = [&] {
    write_file(next, std::string(kSmall, static_cast<char>('a' + renames++ % 26)));
    rename_folder(next, path);
  };
  on_first(ranks, replace);
  longest_until_seen(ranks, path);
  const auto replace_and_read = [&] {
    const auto end = Clock::now() + std::chrono::milliseconds(500);
    auto reader = std::async(std::launch::async, read_replaced, path, end - std::chrono::milliseconds(20));
    while (ranks.is_first() && Clock::now() < end) replace();
    return json(reader.get());
  };
  Counts sum;
  for (const auto& answer : ranks.gather(replace_and_read, kOtherPlace))
    for (const auto& [name, count] : answer.get<Counts>()) sum[name] += count;
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
    finding.warn("training reads no file while another rank replaces it; scripts that follow a run should try again");
  }
}

void check_link(Ranks& ranks, Finding& finding) {
  const auto take_twice = [&] {
    size_t won = 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
      const std::string own = fmt::format("{}/link-{}-{}", ranks.folder, ranks.communicator.rank(), attempt);
      write_file(own, own);
      const bool linked = ::link(own.c_str(), (ranks.folder + "/lock").c_str()) == 0;
      if (!linked && errno != EEXIST) throw_io_error("link", own, errno);
      won += linked;
    }
    return json(won);
  };
  size_t winners = 0;
  for (const auto& won : ranks.gather(take_twice, "the run lock needs hard links: " + kOtherPlace))
    winners += won.get<size_t>();
  finding.found = fmt::format("one winner of {} attempts", 2 * ranks.hosts.size());
  if (winners == 1) return;
  finding.found = fmt::format("{} of {} attempts to take one name succeeded", winners, 2 * ranks.hosts.size());
  finding.fail("two jobs could write one run: " + kOtherPlace);
}

void check_fsync(Ranks& ranks, Finding& finding) {
  std::vector<double> seconds;
  const auto flush_files = [&] {
    const auto begin = Clock::now();
    for (int i = 0; i < 20 && (i < 3 || seconds_since(begin) < 2); ++i) {
      const auto start = Clock::now();
      write_file_atomically(fmt::format("{}/flushed-{}", ranks.folder, i), std::string(4096, 'f'));
      seconds.push_back(seconds_since(start));
      distributed::report_progress();
    }
  };
  on_first(ranks, flush_files, "a checkpoint that is not flushed is lost with the power: " + kOtherPlace);
  if (!ranks.is_first()) return;
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2], longest = seconds.back();
  finding.figures = {{"median_seconds", median}, {"longest_seconds", longest}};
  finding.found =
      fmt::format("{} (longest {}) for a small file and its folder", seconds_text(median), seconds_text(longest));
  if (median >= 0.1)
    finding.warn(
        "save less often (checkpoints.every_minutes), or keep run directories on a faster file system; if its server "
        "is only busy, try again later");
}

std::string data_path(const Ranks& ranks, size_t rank) { return fmt::format("{}/data-{}", ranks.folder, rank); }

// The bytes at `offset` of a rank's file: cheap to compute, different everywhere.
std::string chunk_of(size_t rank, uint64_t offset) {
  std::string chunk(kChunk, '\0');
  auto* words = reinterpret_cast<uint64_t*>(chunk.data());
  std::iota(words, words + kChunk / sizeof(uint64_t), offset * 0x9E3779B97F4A7C15u + rank);
  return chunk;
}

// Every rank moves the bytes that `work` returns. Judges those of all ranks divided by the time of the slowest.
void measure_speed(Ranks& ranks, Finding& finding, const std::function<uint64_t()>& work, const std::string& fix,
                   const char* what) {
  const auto timed = [&] {
    const auto start = Clock::now();
    const uint64_t bytes = work();
    return json{{"bytes", bytes}, {"seconds", seconds_since(start)}};
  };
  double bytes = 0, seconds = 0;
  for (const auto& answer : ranks.gather(timed, fix)) {
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
  const uint64_t most = std::min<uint64_t>(kMostBytes, free_space(ranks.folder).value_or(Space()).free / 10);
  const auto write_own = [&] {
    const auto start = Clock::now();
    AtomicFile file(data_path(ranks, rank));
    do {
      file.write(chunk_of(rank, file.size()));
      distributed::report_progress();
    } while (file.size() + kChunk <= most / ranks.hosts.size() && seconds_since(start) < 5);
    file.commit();
    return file.size();
  };
  measure_speed(ranks, finding, write_own, kOtherPlace, "written and flushed");
}

// Each rank reads another rank's file: on another machine it is not cached in memory.
void check_read_speed(Ranks& ranks, Finding& finding) {
  const size_t rank = (ranks.communicator.rank() + 1) % ranks.hosts.size();
  const std::string path = data_path(ranks, rank);
  const auto read_other = [&] {
    if (seconds_until_seen(path) >= kSightSeconds) throw std::runtime_error(path + " does not appear");
    const int written = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    ::posix_fadvise(written, 0, 0, POSIX_FADV_DONTNEED);  // nor on this one, where the system does as it is told
    ::close(written);
    InputFile file(path);
    std::string content(kChunk, '\0');
    for (uint64_t done = 0; done < file.size(); done += kChunk) {
      file.read(done, content.data(), kChunk);
      if (content != chunk_of(rank, done)) throw std::runtime_error(path + " has other content than was written");
      distributed::report_progress();
    }
    return file.size();
  };
  measure_speed(ranks, finding, read_other, "do not trust this file system with results: " + kOtherPlace,
                "read and compared; partly from memory");
}

void check_visibility(Ranks& ranks, Finding& finding) {
  if (ranks.is_alone(finding)) return;
  std::pair<double, size_t> worst;
  for (int round = 0; round < 5 && worst.first <= 1; ++round) {
    const std::string target = fmt::format("{}/step-{}", ranks.folder, round), data = target + "/data";
    on_first(ranks, [&] {
      make_folders(target + ".new");
      write_file(target + ".new/data", "data");
    });
    ranks.gather([&] { return json(::access(data.c_str(), F_OK)); });  // NFS remembers that it is not there
    on_first(ranks, [&] { rename_folder(target + ".new", target); });
    worst = std::max(worst, longest_until_seen(ranks, data));
  }
  const auto [seconds, rank] = worst;
  finding.figures = {{"longest_seconds", seconds}};
  finding.found = "at most " + seconds_text(seconds);
  if (seconds <= 1) return;
  ranks.blame(finding, rank);
  finding.found = seconds < kSightSeconds ? seconds_text(seconds) + " until this rank saw it"
                                          : "this rank had not seen it after " + seconds_text(seconds);
  finding.warn(
      "nothing breaks, but a job that starts on another machine may have to wait for the newest checkpoint; NFS: mount "
      "with lookupcache=positive or a shorter acdirmax");
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
