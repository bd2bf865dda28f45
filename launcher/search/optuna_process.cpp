#include "launcher/search/optuna_process.h"

#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>

#include "base/error.h"
#include "launcher/work/python.h"
#include "launcher/work/work_source.h"

extern char** environ;

namespace muster::embedded {
extern const std::string_view search_boot_py, search_journal_py, search_sampling_py, search_optuna_process_py;
}

namespace muster::launcher {
namespace {

using nlohmann::json;

constexpr int kPatienceSeconds = 600;  // a storage on a busy file server may be slow; longer than that it hangs
constexpr int kMostDeaths = 5;         // in a row

Error failure(const json& answer) {
  const std::string kind = answer.value("kind", "internal");
  const auto code = kind == "config" ? ExitCode::kBadConfig : kind == "storage" ? ExitCode::kIo : ExitCode::kInternal;
  return Error(code, "the search's study: " + answer.value("error", "no reason given"));
}

}  // namespace

TrialCounts counts_of(const json& standing) {
  const auto count = [&](const char* state) { return standing["counts"][state].get<int64_t>(); };
  return {count("COMPLETE"), count("PRUNED"), count("FAIL"), count("RUNNING")};
}

OptunaProcess::OptunaProcess(json opening) : opening_(std::move(opening)) {
  opening_["op"] = "open";
  start();
}

OptunaProcess::~OptunaProcess() { stop(false); }

void OptunaProcess::start() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    throw Error(ExitCode::kInternal, std::string("no socket for Optuna's process: ") + std::strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);  // what MPI and this process have open is none of its business
  const std::string program = python_program();
  std::vector<std::string> words{program, "-u", "-c"};
  for (const auto text :
       {embedded::search_boot_py, embedded::search_journal_py, embedded::search_sampling_py, embedded::search_optuna_process_py})
    words.emplace_back(text);
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  // Slurm and terminals tell the whole process group to stop. The ranks decide what that means, and need it until they
  // have: it never hears of it, not even while Python starts.
  sigset_t deaf;
  ::sigemptyset(&deaf);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) ::sigaddset(&deaf, signal);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setsigmask(&attributes, &deaf);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  const int error = ::posix_spawnp(&process_, program.c_str(), &actions, &attributes, arguments.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  socket_ = ends[0];
  unread_.clear();
  if (error != 0) {
    process_ = -1;
    throw Error(ExitCode::kBadConfig, "cannot run Python for Optuna (" + program + "): " + std::strerror(error) +
                                          ". It is set up by ./setup.sh; MUSTER_PYTHON names another one");
  }
  json answer;
  if (!exchange(opening_, answer))
    throw Error(ExitCode::kBadConfig,
                "Optuna's process (" + program + ") ended before it answered; what it wrote is above");
  if (!answer.value("ok", false)) throw failure(answer);
  opened_ = std::move(answer);
}

void OptunaProcess::stop(bool kill) {
  if (socket_ >= 0) ::close(socket_);  // the end of its input ends it
  socket_ = -1;
  if (process_ <= 0) return;
  for (int tries = 0; !kill && tries < 50; ++tries) {
    if (::waitpid(process_, nullptr, WNOHANG) == process_) {
      process_ = -1;
      return;
    }
    ::usleep(20000);
  }
  ::kill(process_, SIGKILL);
  ::waitpid(process_, nullptr, 0);
  process_ = -1;
}

// False when the process is gone or hangs.
bool OptunaProcess::exchange(const json& request, json& answer) {
  const std::string line = message_text(request) + "\n";
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t count = ::send(socket_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    sent += static_cast<size_t>(count);
  }
  for (int waited = 0; waited < kPatienceSeconds;) {
    if (const auto end = unread_.find('\n'); end != std::string::npos) {
      const std::string text = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      answer = json::parse(text, nullptr, false);
      return answer.is_object();
    }
    pollfd wait{socket_, POLLIN, 0};
    const int ready = ::poll(&wait, 1, 1000);
    if (ready == 0) ++waited;
    if (ready <= 0) continue;
    char bytes[65536];
    const ssize_t count = ::recv(socket_, bytes, sizeof bytes, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    unread_.append(bytes, static_cast<size_t>(count));
  }
  return false;
}

json OptunaProcess::request(const json& request) {
  for (int deaths = 0;; ++deaths) {
    json answer;
    if (exchange(request, answer)) {
      if (!answer.value("ok", false)) throw failure(answer);
      return answer;
    }
    if (deaths == kMostDeaths)
      throw Error(ExitCode::kInternal, "Optuna's process has died " + std::to_string(deaths + 1) +
                                           " times in a row at: " + message_text(request).substr(0, 200));
    stop(true);
    start();
  }
}

json OptunaProcess::ask(int64_t limit, const std::vector<int64_t>& known) {
  for (int deaths = 0;; ++deaths) {
    json answer;
    if (exchange({{"op", "ask"}, {"limit", limit}}, answer)) {
      if (!answer.value("ok", false)) throw failure(answer);
      return answer;
    }
    if (deaths == kMostDeaths)
      throw Error(ExitCode::kInternal, "Optuna's process has died " + std::to_string(deaths + 1) +
                                           " times in a row while it chose a trial's values");
    stop(true);
    start();
    // It may have begun the trial before it died.
    for (const auto& trial : opened_["running"])
      if (trial.value("job", "") == opening_["job"] &&
          std::find(known.begin(), known.end(), trial["number"].get<int64_t>()) == known.end())
        return request({{"op", "adopt"}, {"number", trial["number"]}});
  }
}

}  // namespace muster::launcher
