// Reads and writes safetensors files, for the Python tests. Exit status: that of the error, with its message on stderr.
//   probe safetensors copy IN OUT         reads IN, writes OUT, prints the fingerprint
//   probe safetensors try FILE...         reads each; prints "ok" or the error's message, one line per file
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>

#include "base/error.h"
#include "checkpoints/fingerprint.h"
#include "checkpoints/safetensors.h"

using namespace muster;

int safetensors_probe(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  try {
    if (mode == "copy" && argc == 4) {
      const checkpoints::SafetensorsFile file = checkpoints::read_safetensors(argv[2]);
      std::vector<checkpoints::NamedTensor> tensors;
      for (const auto& [name, tensor] : file.tensors) tensors.push_back({name, tensor});
      checkpoints::write_safetensors(argv[3], tensors, file.metadata);
      std::cout << checkpoints::fingerprint(tensors) << "\n";
      return 0;
    }
    if (mode == "try") {
      for (int i = 2; i < argc; ++i) {
        try {
          checkpoints::read_safetensors(argv[i]);
          std::cout << "ok\n";
        } catch (const muster::Error& error) {
          std::cout << static_cast<int>(error.code()) << " " << error.what() << "\n";
        }
      }
      return 0;
    }
  } catch (const muster::Error& error) {
    std::cerr << error.what() << "\n";
    return static_cast<int>(error.code());
  }
  return 2;
}
