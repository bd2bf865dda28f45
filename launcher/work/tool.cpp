#include "launcher/work/tool.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace muster::launcher {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

std::string contents(std::FILE* file) {
  std::string text;
  char bytes[4096];
  std::rewind(file);
  for (size_t size = 0; (size = std::fread(bytes, 1, sizeof bytes, file)) > 0;) text.append(bytes, size);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

}  // namespace

ToolEnd run_tool(const std::vector<std::string>& words, const std::string& input) {
  const File in(std::tmpfile()), out(std::tmpfile()), errors(std::tmpfile());
  const bool ready = in && out && errors && std::fwrite(input.data(), 1, input.size(), in.get()) == input.size() &&
                     std::fflush(in.get()) == 0;
  std::fflush(nullptr);
  const pid_t child = ready ? fork() : -1;
  if (child < 0)
    throw Error(ExitCode::kIo, "cannot start " + words[0] + ": " + std::strerror(errno));
  if (child == 0) {
    if (!input.empty() && lseek(fileno(in.get()), 0, SEEK_SET) == 0) dup2(fileno(in.get()), STDIN_FILENO);
    dup2(fileno(out.get()), STDOUT_FILENO);
    dup2(fileno(errors.get()), STDERR_FILENO);
    // Slurm tells the whole process group to stop in time; there is time for this to end.
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGUSR1);
    sigaddset(&stops, SIGUSR2);
    sigprocmask(SIG_BLOCK, &stops, nullptr);
    std::vector<char*> arguments;
    for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  ToolEnd end{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), contents(out.get()),
              contents(errors.get())};
  if (end.code == 127) return {127, "there is no " + words[0] + " on the PATH", ""};
  if (end.code != 0) end.said += (end.said.empty() ? "" : "\n") + end.errors;
  return end;
}

}  // namespace muster::launcher
