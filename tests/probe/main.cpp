// What Python tests call, in one program: probe checkpoint|event|model|safetensors|watchdog ...; each file says what
// follows.
#include <cstdio>
#include <map>
#include <string>

int checkpoint_probe(int argc, char** argv);
int event_probe(int argc, char** argv);
int model_probe(int argc, char** argv);
int safetensors_probe(int argc, char** argv);
int watchdog_probe(int argc, char** argv);

int main(int argc, char** argv) {
  const std::map<std::string, int (*)(int, char**)> probes = {{"checkpoint", checkpoint_probe},
                                                              {"event", event_probe},
                                                              {"model", model_probe},
                                                              {"safetensors", safetensors_probe},
                                                              {"watchdog", watchdog_probe}};
  const auto found = probes.find(argc > 1 ? argv[1] : "");
  if (found == probes.end()) {
    std::fprintf(stderr, "usage: probe checkpoint|event|model|safetensors|watchdog ...\n");
    return 2;
  }
  return found->second(argc - 1, argv + 1);
}
