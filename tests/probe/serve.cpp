#include "serve.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

namespace {

struct Call {
  int connection;
  pid_t process;
};

struct Request {
  int descriptors[3] = {-1, -1, -1};
  std::string directory;
  std::vector<std::string> environment, words;
};

bool read_request(int connection, Request& request) {
  uint32_t length = 0;
  iovec part{&length, sizeof length};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof request.descriptors)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (::recvmsg(connection, &message, MSG_WAITALL) != sizeof length) return false;
  const cmsghdr* const head = CMSG_FIRSTHDR(&message);
  if (head == nullptr || head->cmsg_len != CMSG_LEN(sizeof request.descriptors)) return false;
  std::memcpy(request.descriptors, CMSG_DATA(head), sizeof request.descriptors);
  std::string text(length, '\0');
  if (::recv(connection, text.data(), length, MSG_WAITALL) != static_cast<ssize_t>(length)) return false;
  std::vector<std::string> strings;
  for (size_t begin = 0; begin < text.size(); begin = text.find('\0', begin) + 1)
    strings.emplace_back(text.c_str() + begin);
  const auto variables = strings.begin() + 2;
  const auto words = variables + std::stol(strings.at(1));
  request.directory = strings[0];
  request.environment.assign(variables, words);
  request.words.assign(words, strings.end());
  return true;
}

[[noreturn]] void run_request(Request& request, const std::function<int(int, char**)>& call) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int target = 0; target < 3; ++target) {
    // A descriptor that is itself a target is not in the way: those of the server are above 2.
    if (::dup2(request.descriptors[target], target) < 0) std::_Exit(3);
  }
  ::closefrom(3);
  if (::chdir(request.directory.c_str()) != 0) std::_Exit(3);
  ::clearenv();
  for (auto& variable : request.environment) ::putenv(variable.data());
  std::string program = "probe";
  std::vector<char*> argv{program.data()};
  for (auto& word : request.words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int status = call(static_cast<int>(argv.size()) - 1, argv.data());
  std::cout.flush();
  std::fflush(nullptr);
  std::_Exit(status);  // without LibTorch's destructors, which take most of the time that is saved here
}

}  // namespace

int serve(int listener, const std::function<int(int, char**)>& call) {
  sigset_t of_children;
  sigemptyset(&of_children);
  sigaddset(&of_children, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &of_children, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  const int ended = ::signalfd(-1, &of_children, SFD_NONBLOCK | SFD_CLOEXEC);
  std::vector<Call> calls;
  while (true) {
    std::vector<pollfd> waits{{0, POLLIN, 0}, {listener, POLLIN, 0}, {ended, POLLIN, 0}};
    for (const auto& one : calls) waits.push_back({one.connection, POLLIN, 0});
    if (::poll(waits.data(), waits.size(), -1) < 0) continue;
    if (waits[0].revents != 0) break;
    for (size_t i = 3; i < waits.size(); ++i) {
      if (waits[i].revents == 0) continue;
      unsigned char number = 0;
      const ssize_t size = ::recv(waits[i].fd, &number, 1, MSG_DONTWAIT);
      if (size < 0) continue;
      const auto one =
          std::find_if(calls.begin(), calls.end(), [&](const Call& c) { return c.connection == waits[i].fd; });
      ::kill(one->process, size == 1 ? number : SIGKILL);
      if (size == 1) continue;
      ::close(one->connection);
      calls.erase(one);
    }
    if (waits[2].revents != 0) {
      signalfd_siginfo ignored;
      while (::read(ended, &ignored, sizeof ignored) > 0) continue;
      int status = 0;
      for (pid_t process; (process = ::waitpid(-1, &status, WNOHANG)) > 0;) {
        const auto one = std::find_if(calls.begin(), calls.end(), [&](const Call& c) { return c.process == process; });
        if (one == calls.end()) continue;
        const int32_t answer = status;
        (void)!::write(one->connection, &answer, sizeof answer);
        ::close(one->connection);
        calls.erase(one);
      }
    }
    if (waits[1].revents == 0) continue;
    const int connection = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    Request request;
    const pid_t process = read_request(connection, request) ? ::fork() : -1;
    if (process == 0) run_request(request, call);
    for (const int descriptor : request.descriptors) ::close(descriptor);
    if (process > 0)
      calls.push_back({connection, process});
    else
      ::close(connection);
  }
  for (const auto& one : calls) ::kill(one.process, SIGKILL);
  return 0;
}
