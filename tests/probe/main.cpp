// What Python tests call, in one program: probe checkpoint|encoder|event|model|muster|safetensors|watchdog ...; each
// file says what follows. `probe serve N` runs many such calls (serve.h); N: a listening socket.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "serve.h"

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
    std::fprintf(stderr, "usage: probe checkpoint|encoder|event|model|muster|safetensors|watchdog ... | serve N\n");
    return 2;
  }
  return found->second(argc - 1, argv + 1);
}

}  // namespace

int main(int argc, char** argv) {
  return argc == 3 && std::string(argv[1]) == "serve" ? serve(std::atoi(argv[2]), call) : call(argc, argv);
}
