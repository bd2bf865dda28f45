// What Python tests call thousands of times, without LibTorch, so that it starts in milliseconds: probe_plain
// data|values|metrics ...
#include <cstdio>
#include <string>

int data_probe(int argc, char** argv);
int values_probe(int argc, char** argv);
int metrics_probe(int argc, char** argv);

int main(int argc, char** argv) {
  const std::string which = argc > 1 ? argv[1] : "";
  if (which == "data") return data_probe(argc, argv);
  if (which == "values") return values_probe(argc, argv);
  if (which == "metrics") return metrics_probe(argc - 1, argv + 1);
  std::fprintf(stderr, "usage: probe_plain data|values|metrics ...\n");
  return 2;
}
