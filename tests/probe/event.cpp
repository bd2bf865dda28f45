// Writes TensorBoard files, for the Python tests: rows of metrics.jsonl come from standard input, each with a
// "wall_time" as well.
//   probe event RUN_DIRECTORY           a new file
//   probe event RUN_DIRECTORY STEP      goes on with the one that is there after that step
// Prints the file's path. Exit status: that of the error, with its message on stderr.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "core/run/tensorboard.h"

using namespace muster;

int event_probe(int argc, char** argv) {
  try {
    std::optional<uint64_t> last;
    if (argc > 2) last = std::stoull(argv[2]);
    run::EventFile file(argv[1], last);
    for (std::string line; std::getline(std::cin, line);) {
      auto row = nlohmann::json::parse(line);
      const double wall_time = row.at("wall_time");
      row.erase("wall_time");
      file.append(row.at("step"), wall_time, run::scalars_of(row));
    }
    file.sync();
    std::cout << file.path() << "\n";
    return 0;
  } catch (const muster::Error& error) {
    std::cerr << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}
