// Writes, reads and damages checkpoints, for the Python tests; ranks are threads. Exit status: that of the error, with
// its message on stderr.
// | probe checkpoint save IN.safetensors FOLDER RANKS STEP [async]   the tensors of IN as a checkpoint of FOLDER
// | probe checkpoint load FOLDER RANKS OUT.safetensors   the newest whole one, into OUT; prints its step, then why newer ones were skipped
// | probe checkpoint try PATH...   loads and verifies each; prints "ok" or code and message, one line each
// | probe checkpoint damage FOLDER COUNT SEED   flips bits and cuts files of the newest, COUNT times per file, one at a time; prints for
// |                                             each file how often that was noticed and the next older one loaded
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>

#include "base/error.h"
#include "checkpoints/saver.h"
#include "distributed/threads.h"

using namespace muster;
using namespace muster::checkpoints;
using distributed::Communicator;
using muster::Error;

namespace {

void save(const std::string& in, const std::string& folder, int ranks, uint64_t step, bool asynchronous) {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, tensor] : read_safetensors(in).tensors) tensors.push_back({name, tensor});
  CheckpointInfo info;
  info.step = step;
  distributed::run_as_threads(ranks, [&](Communicator& communicator) {
    CheckpointSaver saver(folder, {1000, 0, 0}, asynchronous, communicator);
    auto outcomes = saver.save(info, tensors);
    if (auto outcome = saver.finish()) outcomes.push_back(*outcome);
    if (!outcomes.at(0).committed) throw Error(muster::ExitCode::kIo, outcomes[0].error);
  });
}

LoadedCheckpoint load(const std::string& folder, int ranks, std::vector<std::string>& damaged) {
  LoadedCheckpoint loaded;
  distributed::run_as_threads(ranks, [&](Communicator& communicator) {
    std::vector<std::string> reasons;
    auto own = load_newest_checkpoint(folder, communicator, reasons);
    if (!own) throw Error(muster::ExitCode::kBadData, "There is no checkpoint in " + folder + ".");
    if (communicator.rank() == 0) loaded = std::move(*own), damaged = reasons;
  });
  return loaded;
}

std::string attempt(const std::function<void()>& action) {
  try {
    action();
    return "ok";
  } catch (const Error& error) {
    std::string message = error.what();
    for (char& c : message)
      if (c == '\n') c = ' ';
    return std::to_string(static_cast<int>(error.code())) + " " + message;
  }
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

void damage(const std::string& folder, int count, uint64_t seed) {
  const auto found = find_checkpoints(folder);
  const uint64_t newest = found.at(0).step, older = found.at(1).step;
  std::mt19937_64 random(seed);
  int rank_counts = 0;
  for (const auto& entry : std::filesystem::directory_iterator(found[0].path)) {
    const std::string path = entry.path(), good = contents(path);
    int flips = 0, cuts = 0, noticed = 0;
    std::string last_reason;
    for (int i = 0; i < count; ++i) {
      std::string bad = good;
      if (i % 4 == 3) {
        bad.resize(random() % good.size());
        ++cuts;
      } else {
        bad[random() % good.size()] ^= static_cast<char>(1 << random() % 8);
        ++flips;
      }
      write(path, bad);
      std::vector<std::string> reasons;
      const int ranks = 1 + rank_counts++ % 3;
      const LoadedCheckpoint loaded = load(folder, ranks, reasons);
      const bool verified = attempt([&] { verify_checkpoint(found[0].path); }) == "ok";
      const bool seen = loaded.checkpoint.info.step == older && reasons.size() == 1 && !verified;
      if (seen)
        last_reason = reasons[0];
      else
        std::printf("NOT NOTICED: damage %d of %s: %zu bytes\n", i, path.c_str(), bad.size());
      noticed += seen;
    }
    write(path, good);
    std::printf("%s: %d bits flipped, %d cut, %d noticed: %s\n", entry.path().filename().c_str(), flips, cuts, noticed,
                last_reason.c_str());
  }
  std::vector<std::string> reasons;
  if (load(folder, 2, reasons).checkpoint.info.step != newest)
    throw std::runtime_error("the newest checkpoint was not put right again");
}

}  // namespace

int checkpoint_probe(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::string mode = arguments.empty() ? "" : arguments[0];
  try {
    if (mode == "save" && argc >= 6) {
      save(arguments[1], arguments[2], std::stoi(arguments[3]), std::stoull(arguments[4]), argc == 7);
    } else if (mode == "load" && argc == 5) {
      std::vector<std::string> damaged;
      const LoadedCheckpoint loaded = load(arguments[1], std::stoi(arguments[2]), damaged);
      std::vector<NamedTensor> tensors;
      for (const auto& [name, tensor] : loaded.tensors) tensors.push_back({name, tensor});
      write_safetensors(arguments[3], tensors, {});
      std::cout << loaded.checkpoint.info.step << "\n";
      for (const std::string& reason : damaged) std::cout << reason << "\n";
    } else if (mode == "try") {
      for (std::size_t i = 1; i < arguments.size(); ++i) {
        const std::string loading = attempt([&] {
          const auto communicator = distributed::make_single_process_communicator();
          load_checkpoint(arguments[i], *communicator);
        });
        const std::string verifying = attempt([&] { verify_checkpoint(arguments[i]); });
        std::cout << loading << "\n";
        if (loading != verifying) std::cerr << "verify: " << verifying << "\nload:   " << loading << "\n";
      }
    } else if (mode == "damage" && argc == 5) {
      damage(arguments[1], std::stoi(arguments[2]), std::stoull(arguments[3]));
    } else {
      return 2;
    }
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return static_cast<int>(error.code());
  }
  return 0;
}
