#include "launcher/doctor/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "distributed/watchdog.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/ranks.h"

namespace muster::launcher::doctor {
namespace {

using Clock = std::chrono::steady_clock;
using distributed::Communicator;
using nlohmann::json;

constexpr double kRenameSeconds = 0.5, kSightSeconds = 20, kWriteSeconds = 5, kFlushSeconds = 2;
constexpr size_t kSmall = 64 << 10, kChunk = 4 << 20;
constexpr int64_t kMostBytes = 128 << 20;  // of all ranks together
constexpr int kRounds = 5, kFlushes = 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

[[noreturn]] void fail(const std::string& what, int error_number) {
  throw std::runtime_error(what + ": " + std::strerror(error_number));
}

class File {
 public:
  File(const std::string& path, int flags) : path_(path), descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail("open " + path, errno);
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int descriptor() const { return descriptor_; }

  void write(const std::string& bytes) const {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t wrote = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
      if (wrote < 0 && errno != EINTR) fail("write " + path_, errno);
      if (wrote > 0) done += static_cast<size_t>(wrote);
    }
  }
  void flush() const {
    if (::fsync(descriptor_) != 0) fail("fsync " + path_, errno);
  }

 private:
  std::string path_;
  int descriptor_;
};

void rename_to(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail("rename " + from, errno);
}

// Waits until the file is there; negative: it never came. Looks in between, as whoever waits for a checkpoint does.
double seconds_until_seen(const std::string& path) {
  const auto start = Clock::now();
  while (::access(path.c_str(), F_OK) != 0) {
    if (seconds_since(start) > kSightSeconds) return -1;
    distributed::report_progress();
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return seconds_since(start);
}

// Reads a file that is being replaced all the time, until `end`.
json watch_replaced(const std::string& path, Clock::time_point end) {
  int64_t reads = 0, missing = 0, torn = 0, stale = 0;
  std::string content(kSmall + 1, '\0');
  while (Clock::now() < end) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    ++reads;
    if (descriptor < 0) {
      (errno == ENOENT ? missing : stale)++;
      continue;
    }
    size_t length = 0;
    ssize_t got = 0;
    while (length <= kSmall && (got = ::read(descriptor, content.data() + length, content.size() - length)) > 0)
      length += static_cast<size_t>(got);
    ::close(descriptor);
    if (got < 0)
      ++stale;
    else if (length != kSmall || content.find_first_not_of(content[0]) < kSmall)
      ++torn;
  }
  return {{"reads", reads}, {"missing", missing}, {"torn", torn}, {"stale", stale}};
}

Finding finding_named(const std::string& name, const std::string& expected) {
  return {name, State::kOk, "", expected, "", "", -1, json::object()};
}

const char* const kOtherPlace =
    "keep run directories on another file system (--directory tries it): a local disk, NFS, Lustre, GPFS; not a "
    "mounted object store";

// Fills in an error of any rank; false when there is one.
bool went_well(Finding& finding, const std::vector<json>& answers, const std::vector<std::string>& hosts,
               const std::string& fix) {
  finding.found = first_error(answers, hosts);
  if (finding.found.empty()) return true;
  finding.state = State::kFailed;
  const bool full = finding.found.find(std::strerror(ENOSPC)) != std::string::npos ||
                    finding.found.find(std::strerror(EDQUOT)) != std::string::npos;
  finding.fix = full ? "make room, or name another place: --directory DIR; df -h and quota -s say what is left" : fix;
  return false;
}

Finding check_shared(Communicator& ranks, const std::vector<std::string>& hosts, const std::string& folder) {
  auto finding = finding_named("shared", "every rank sees what rank 0 writes");
  auto answers = each_rank(ranks, [&] {
    if (ranks.rank() == 0) File(folder + "/here", O_WRONLY | O_CREAT | O_EXCL).write("here");
    return json();
  });
  if (!went_well(finding, answers, hosts, kOtherPlace)) return finding;
  answers = each_rank(ranks, [&] { return json(seconds_until_seen(folder + "/here")); });
  for (size_t rank = 0; rank < answers.size(); ++rank)
    if (answers[rank].get<double>() < 0) {
      finding.state = State::kFailed;
      finding.host = hosts[rank];
      finding.rank = static_cast<int>(rank);
      finding.found = "this rank does not see the folder that rank 0 writes to";
      finding.fix = "give --directory (and run directories) a path that all machines share, the same on each";
      return finding;
    }
  finding.found = ranks.size() == 1 ? "one rank" : "all ranks see it";
  return finding;
}

Finding check_rename(Communicator& ranks, const std::vector<std::string>& hosts, const std::string& folder) {
  auto finding =
      finding_named("rename", "whoever reads a file that is replaced by rename finds the old or the new one, whole");
  const std::string path = folder + "/replaced", next = folder + "/replaced.new";
  int64_t renames = 0;
  const auto write_next = [&] {
    { File(next, O_WRONLY | O_CREAT | O_TRUNC).write(std::string(kSmall, static_cast<char>('a' + renames++ % 26))); }
    rename_to(next, path);
  };
  auto answers = each_rank(ranks, [&] {
    if (ranks.rank() == 0) write_next();
    return json(seconds_until_seen(path));
  });
  if (!went_well(finding, answers, hosts, kOtherPlace)) return finding;
  answers = each_rank(ranks, [&] { return json(seconds_until_seen(path)); });
  const auto end = Clock::now() + std::chrono::milliseconds(static_cast<int>(1000 * kRenameSeconds));
  const auto write_all = [&] {
    while (Clock::now() < end) write_next();
    return json({{"renames", renames}});
  };
  answers = each_rank(ranks, [&]() -> json {
    if (ranks.size() == 1) {
      json seen;
      std::thread reader([&] { seen = watch_replaced(path, end); });
      try {
        write_all();
      } catch (...) {
        reader.join();
        throw;
      }
      reader.join();
      return seen;
    }
    return ranks.rank() == 0 ? write_all() : watch_replaced(path, end - std::chrono::milliseconds(20));
  });
  if (!went_well(finding, answers, hosts, kOtherPlace)) return finding;
  int64_t reads = 0, missing = 0, torn = 0, stale = 0;
  for (const auto& answer : answers) {
    reads += answer.value("reads", int64_t{0}), missing += answer.value("missing", int64_t{0});
    torn += answer.value("torn", int64_t{0}), stale += answer.value("stale", int64_t{0});
  }
  finding.figures = {{"renames", renames}, {"reads", reads}, {"missing", missing}, {"torn", torn}, {"stale", stale}};
  finding.found =
      std::to_string(reads) + " reads while it was replaced " + std::to_string(renames) + " times, all whole";
  if (missing + torn > 0) {
    finding.state = State::kFailed;
    finding.found = "rename is not atomic: of " + std::to_string(reads) + " reads " + std::to_string(missing) +
                    " found no file, " + std::to_string(torn) + " half of one";
    finding.fix = kOtherPlace;
  } else if (stale > 0) {
    finding.state = State::kWarning;
    finding.found = std::to_string(stale) + " of " + std::to_string(reads) +
                    " reads failed while the file was replaced (stale file handles, as NFS has them)";
    finding.fix =
        "nothing to do for training, which reads no file while another rank replaces it; scripts that follow a run "
        "should try again";
  }
  return finding;
}

Finding check_link(Communicator& ranks, const std::vector<std::string>& hosts, const std::string& folder) {
  auto finding =
      finding_named("link", "link() gives a name to the first who asks: the run lock keeps a second job out by it");
  const auto answers = each_rank(ranks, [&] {
    json won = json::array();
    for (int attempt = 0; attempt < 2; ++attempt) {
      const std::string own = folder + "/link-" + std::to_string(ranks.rank()) + "-" + std::to_string(attempt);
      File(own, O_WRONLY | O_CREAT | O_EXCL).write(own);
      const int status = ::link(own.c_str(), (folder + "/lock").c_str());
      if (status != 0 && errno != EEXIST) fail("link " + own, errno);
      won.push_back(status == 0);
    }
    return won;
  });
  if (!went_well(finding, answers, hosts, std::string("the run lock needs hard links: ") + kOtherPlace)) return finding;
  int64_t winners = 0;
  for (const auto& answer : answers) winners += std::count(answer.begin(), answer.end(), json(true));
  finding.found = "one winner of " + std::to_string(2 * ranks.size()) + " attempts";
  if (winners == 1) return finding;
  finding.state = State::kFailed;
  finding.found =
      std::to_string(winners) + " of " + std::to_string(2 * ranks.size()) + " attempts to take one name succeeded";
  finding.fix = std::string("two jobs could write one run: ") + kOtherPlace;
  return finding;
}

Finding check_fsync(Communicator& ranks, const std::vector<std::string>& hosts, const std::string& folder) {
  auto finding =
      finding_named("fsync", "below 0.1 s for a small file and its folder: what a checkpoint's last step takes");
  const auto answers = each_rank(ranks, [&]() -> json {
    if (ranks.rank() != 0) return {};
    std::vector<double> seconds;
    const auto begin = Clock::now();  // the others wait
    for (int i = 0; i < kFlushes && (i < 3 || seconds_since(begin) < kFlushSeconds); ++i) {
      const auto start = Clock::now();
      const File file(folder + "/flushed-" + std::to_string(i), O_WRONLY | O_CREAT | O_EXCL);
      file.write(std::string(4096, 'f'));
      file.flush();
      File(folder, O_RDONLY | O_DIRECTORY).flush();
      seconds.push_back(seconds_since(start));
      distributed::report_progress();
    }
    std::sort(seconds.begin(), seconds.end());
    return {{"median", seconds[seconds.size() / 2]}, {"longest", seconds.back()}};
  });
  if (!went_well(finding, answers, hosts,
                 std::string("a checkpoint that is not flushed is lost with the power: ") + kOtherPlace))
    return finding;
  const double median = answers[0]["median"], longest = answers[0]["longest"];
  finding.figures = {{"median_seconds", median}, {"longest_seconds", longest}};
  finding.found = seconds_text(median) + " (longest " + seconds_text(longest) + ") for a small file and its folder";
  if (median < 0.1) return finding;
  finding.state = State::kWarning;
  finding.fix =
      "save less often (checkpoints.every_minutes), or keep run directories on a faster file system; a busy server can "
      "be the reason: try again later";
  return finding;
}

// The bytes at `offset` of rank `rank`'s file: cheap to make, different everywhere.
std::string chunk_of(int rank, int64_t offset) {
  std::string chunk(kChunk, '\0');
  auto* words = reinterpret_cast<uint64_t*>(chunk.data());
  const uint64_t start = static_cast<uint64_t>(offset) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(rank);
  for (size_t i = 0; i < kChunk / sizeof(uint64_t); ++i) words[i] = start + i;
  return chunk;
}

void check_speed(Communicator& ranks, const std::vector<std::string>& hosts, const std::string& folder,
                 const Report& report) {
  auto write = finding_named("write_speed", "above 50 MB/s, all ranks together"),
       read = finding_named("read_speed", "above 50 MB/s, and what was written");
  const auto path_of = [&](int rank) { return folder + "/data-" + std::to_string(rank); };
  const auto bound = each_rank(ranks, [&] {
    return json(std::max<int64_t>(
        kChunk, std::min<int64_t>(kMostBytes, room_of(folder).free_bytes / 10) / ranks.size() / kChunk * kChunk));
  });
  auto answers = each_rank(ranks, [&]() -> json {
    const auto start = Clock::now();
    const File file(path_of(ranks.rank()), O_WRONLY | O_CREAT | O_EXCL);
    int64_t done = 0;
    for (; done < bound[0].get<int64_t>() && seconds_since(start) < kWriteSeconds; done += kChunk) {
      file.write(chunk_of(ranks.rank(), done));
      distributed::report_progress();
    }
    file.flush();
    ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
    return {{"bytes", done}, {"seconds", seconds_since(start)}};
  });
  const auto judge = [&](Finding& finding, const char* what) {
    double bytes = 0, seconds = 0;
    for (const auto& answer : answers)
      bytes += answer["bytes"].get<double>(), seconds = std::max(seconds, answer["seconds"].get<double>());
    finding.figures = {{"bytes", bytes}, {"seconds", seconds}, {"bytes_per_second", bytes / seconds}};
    finding.found = size_text(bytes / seconds) + "/s (" + size_text(bytes) + " " + what + ")";
    if (bytes / seconds >= 50e6) return;
    finding.state = State::kWarning;
    finding.fix = "checkpoints and data will be slow here: see \"load\", try again later, or use a faster file system";
  };
  const bool written = went_well(write, answers, hosts, kOtherPlace);
  if (written) judge(write, "written and flushed");
  report(write);
  if (!written) return;
  const int64_t own_bytes = answers[(ranks.rank() + 1) % ranks.size()]["bytes"];
  answers = each_rank(ranks, [&]() -> json {
    // Another rank's file: that of another machine is not in this one's memory.
    const int rank = (ranks.rank() + 1) % ranks.size();
    if (seconds_until_seen(path_of(rank)) < 0)
      throw std::runtime_error("the file of rank " + std::to_string(rank) + " does not appear");
    const auto start = Clock::now();
    const File file(path_of(rank), O_RDONLY);
    ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
    std::string content(kChunk, '\0');
    for (int64_t done = 0; done < own_bytes; done += kChunk) {
      for (size_t length = 0; length < kChunk;) {
        const ssize_t got =
            ::pread(file.descriptor(), content.data() + length, kChunk - length, done + static_cast<int64_t>(length));
        if (got < 0) fail("read " + path_of(rank), errno);
        if (got == 0) throw std::runtime_error(path_of(rank) + " is shorter than it was written");
        length += static_cast<size_t>(got);
      }
      if (content != chunk_of(rank, done))
        throw std::runtime_error(path_of(rank) + " has other content than was written");
      distributed::report_progress();
    }
    return {{"bytes", own_bytes}, {"seconds", seconds_since(start)}};
  });
  if (went_well(read, answers, hosts, std::string("do not trust this file system with results: ") + kOtherPlace))
    judge(read, "read and compared; partly from memory");
  report(read);
}

Finding check_visibility(Communicator& ranks, const std::vector<std::string>& hosts, const std::string& folder) {
  auto finding = finding_named("visibility", "a folder that rank 0 renames is there for the others within 1 s");
  if (ranks.size() == 1) {
    finding.state = State::kSkipped;
    finding.found = "one rank alone";
    return finding;
  }
  double longest = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::string target = folder + "/step-" + std::to_string(round);
    auto answers = each_rank(ranks, [&]() -> json {
      if (ranks.rank() == 0) {
        if (::mkdir((target + ".new").c_str(), 0755) != 0) fail("mkdir " + target + ".new", errno);
        File(target + ".new/data", O_WRONLY | O_CREAT | O_EXCL).write("data");
      } else {
        ::access((target + "/data").c_str(), F_OK);  // so that its absence is remembered, as NFS does
      }
      return {};
    });
    if (!went_well(finding, answers, hosts, kOtherPlace)) return finding;
    answers = each_rank(ranks, [&]() -> json {
      if (ranks.rank() == 0) rename_to(target + ".new", target);
      return seconds_until_seen(target + "/data");
    });
    if (!went_well(finding, answers, hosts, kOtherPlace)) return finding;
    for (size_t rank = 1; rank < answers.size(); ++rank) {
      const double seconds = answers[rank];
      if (seconds >= 0 && seconds <= longest) continue;
      longest = seconds < 0 ? kSightSeconds : seconds;
      finding.rank = static_cast<int>(rank);
      finding.host = hosts[rank];
    }
    if (longest > 1) break;
  }
  finding.figures = {{"longest_seconds", longest}};
  finding.found = "at most " + seconds_text(longest);
  if (longest <= 1) {
    finding.rank = -1;
    finding.host = "";
    return finding;
  }
  finding.state = State::kWarning;
  finding.found = longest < kSightSeconds ? seconds_text(longest) + " until this rank saw it"
                                          : "this rank had not seen it after " + seconds_text(kSightSeconds);
  finding.fix =
      "nothing breaks, but a job that starts on another machine may need to wait for the newest checkpoint; NFS: mount "
      "with lookupcache=positive "
      "or a shorter acdirmax";
  return finding;
}

}  // namespace

void check_files(Communicator& communicator, const std::vector<std::string>& hosts, const std::string& folder,
                 const Report& report) {
  if (folder.empty()) return report({"shared", State::kSkipped, "no folder to try files in", "", "", "", -1, {}});
  const Finding shared = check_shared(communicator, hosts, folder);
  report(shared);
  // Every rank comes to the same finding, from the same answers.
  if (shared.state != State::kOk) return;
  report(check_rename(communicator, hosts, folder));
  report(check_link(communicator, hosts, folder));
  report(check_fsync(communicator, hosts, folder));
  check_speed(communicator, hosts, folder, report);
  report(check_visibility(communicator, hosts, folder));
}

}  // namespace muster::launcher::doctor
