// What Python tests call, in one program: probe checkpoint|encoder|event|model|muster|safetensors|watchdog ...; each
// file says what follows. `probe serve` runs many such calls, one after the other, each in a process of its own:
// starting LibTorch takes longer than most of them. It reads one call per line, a JSON list: the files for standard
// input, output and error, the working directory, then the words of the call. It answers with one line, the exit
// status, or the signal as a negative number.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

int checkpoint_probe(int argc, char** argv);
int encoder_probe(int argc, char** argv);
int event_probe(int argc, char** argv);
int model_probe(int argc, char** argv);
int muster_probe(int argc, char** argv);
int safetensors_probe(int argc, char** argv);
int watchdog_probe(int argc, char** argv);

namespace {

int call(int argc, char** argv) {
  const std::map<std::string, int (*)(int, char**)> probes = {
      {"checkpoint", checkpoint_probe}, {"encoder", encoder_probe}, {"event", event_probe},
      {"model", model_probe},           {"muster", muster_probe},   {"safetensors", safetensors_probe},
      {"watchdog", watchdog_probe}};
  const auto found = probes.find(argc > 1 ? argv[1] : "");
  if (found == probes.end()) {
    std::fprintf(stderr, "usage: probe checkpoint|encoder|event|model|muster|safetensors|watchdog ... | serve\n");
    return 2;
  }
  return found->second(argc - 1, argv + 1);
}

void redirect(int descriptor, const std::string& path, int flags) {
  const int file = ::open(path.c_str(), flags, 0600);
  if (file < 0 || ::dup2(file, descriptor) < 0) std::_Exit(3);
  ::close(file);
}

int serve() {
  for (std::string line; std::getline(std::cin, line);) {
    auto words = nlohmann::json::parse(line).get<std::vector<std::string>>();
    const pid_t child = ::fork();
    if (child == 0) {
      redirect(0, words.at(0), O_RDONLY);
      redirect(1, words.at(1), O_WRONLY | O_CREAT | O_TRUNC);
      redirect(2, words.at(2), O_WRONLY | O_CREAT | O_TRUNC);
      if (::chdir(words.at(3).c_str()) != 0) std::_Exit(3);
      std::vector<char*> argv{words[2].data()};
      for (std::size_t i = 4; i < words.size(); ++i) argv.push_back(words[i].data());
      const int argc = static_cast<int>(argv.size());
      argv.push_back(nullptr);
      const int status = call(argc, argv.data());
      std::cout.flush();
      std::fflush(nullptr);
      std::_Exit(status);  // without LibTorch's destructors, which take most of the time that is saved here
    }
    int status = 0;
    if (child < 0 || ::waitpid(child, &status, 0) != child) return 1;
    std::cout << (WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)) << std::endl;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return argc == 2 && std::string(argv[1]) == "serve" ? serve() : call(argc, argv); }
