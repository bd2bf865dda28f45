#include "distributed/last_words.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <thread>

#include "base/files.h"
#include "distributed/watchdog_thread.h"

namespace muster::distributed {
namespace {

using namespace std::chrono_literals;

constexpr auto kLastResort = 3s;
constexpr int kSpeaking = 2000, kSpeakingElsewhere = 500;  // milliseconds for the rank that speaks
constexpr int kStaying = 1500;

void write_file(const std::string& path, const std::string& text) {
  const std::string unfinished = path + ".unfinished";
  const int fd = ::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return;
  try_write_all(fd, text);
  ::close(fd);
  std::rename(unfinished.c_str(), path.c_str());
}

void speak_and_record(const LastWords& words) {
  const std::string* folder = flight_record_folder();
  std::string message = words.text + " " + describe_place(words.rank, words.status);
  if (folder) message += " The last collectives of every rank: " + *folder + "/flight-record-rank-*.json.";
  if (words.speaks) try_write_all(STDERR_FILENO, "muster: " + message + "\n");
  if (folder)
    write_file(*folder + "/flight-record-rank-" + std::to_string(words.rank) + ".json",
               flight_record_json({words.rank, words.size, words.host, words.status.phase, message, words.missing},
                                  flight_recorder().entries()));
  run_abort_hooks();
  std::fflush(nullptr);
  // The first to leave makes mpirun end the others: that must not be before the one that speaks has spoken.
  pollfd spoken{words.speakers_process, POLLIN, 0};
  if (!words.speaks) ::poll(&spoken, 1, spoken.fd >= 0 ? kSpeaking : kSpeakingElsewhere);
  // Rank 0, which tells everyone who speaks, is lost then. A slower rank must still see this one alive, or it takes it
  // for lost too and speaks as well.
  else if (words.rank != 0)
    ::poll(nullptr, 0, kStaying);
}

}  // namespace

void end_process(const LastWords& words) {
  try {
    auto done = std::make_shared<std::promise<void>>();
    std::thread([words, done] {
      speak_and_record(words);
      done->set_value();
    }).detach();
    done->get_future().wait_for(kLastResort);
  } catch (const std::exception&) {  // no more threads: what can be done without
    if (words.speaks) try_write_all(STDERR_FILENO, "muster: " + words.text + "\n");
  }
  ::_exit(static_cast<int>(ExitCode::kPeerFailed));
}

}  // namespace muster::distributed
