// probe_client SOCKET WORDS...: a call of `probe serve` (serve.h) that looks like a program of its own, for those that
// mpirun starts: the call has its descriptors, environment and directory, but not its limits and its binding to cores;
// signals are handed on, and it ends as the call does.
#include <poll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

extern char** environ;

namespace {

int fail(const char* what) {
  std::perror(what);
  return 3;
}

std::string request_of(char** words) {
  char directory[4096];
  if (!::getcwd(directory, sizeof directory)) return "";
  std::string variables;
  long count = 0;
  for (char** variable = environ; *variable; ++variable, ++count) variables += *variable + std::string(1, '\0');
  std::string text = directory + std::string(1, '\0') + std::to_string(count) + '\0' + variables;
  for (; *words; ++words) text += *words + std::string(1, '\0');
  return text;
}

bool send_request(int connection, const std::string& text) {
  uint32_t length = static_cast<uint32_t>(text.size());
  iovec part{&length, sizeof length};
  const int descriptors[3] = {0, 1, 2};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof descriptors)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* const head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof descriptors);
  std::memcpy(CMSG_DATA(head), descriptors, sizeof descriptors);
  return ::sendmsg(connection, &message, 0) == sizeof length &&
         ::send(connection, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
}

}  // namespace

int main(int argc, char** argv) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (argc < 3 || std::strlen(argv[1]) >= sizeof address.sun_path) {
    std::fprintf(stderr, "usage: probe_client SOCKET WORDS...\n");
    return 2;
  }
  std::strcpy(address.sun_path, argv[1]);
  sigset_t handed_on;
  sigemptyset(&handed_on);
  for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT}) sigaddset(&handed_on, number);
  ::sigprocmask(SIG_BLOCK, &handed_on, nullptr);
  const int signals = ::signalfd(-1, &handed_on, SFD_CLOEXEC);
  const int connection = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return fail(argv[1]);
  if (!send_request(connection, request_of(argv + 2))) return fail(argv[1]);
  while (true) {
    pollfd waits[] = {{connection, POLLIN, 0}, {signals, POLLIN, 0}};
    if (::poll(waits, 2, -1) < 0) continue;
    if (waits[1].revents != 0) {
      signalfd_siginfo info;
      if (::read(signals, &info, sizeof info) == sizeof info) {
        const unsigned char number = static_cast<unsigned char>(info.ssi_signo);
        (void)!::send(connection, &number, 1, MSG_NOSIGNAL);
      }
    }
    if (waits[0].revents == 0) continue;
    int32_t status = 0;
    if (::recv(connection, &status, sizeof status, MSG_WAITALL) != sizeof status)
      return fail("the server of probes ended");
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    std::signal(WTERMSIG(status), SIG_DFL);
    ::sigprocmask(SIG_UNBLOCK, &handed_on, nullptr);
    ::kill(::getpid(), WTERMSIG(status));
    return 128 + WTERMSIG(status);
  }
}
