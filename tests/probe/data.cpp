// probe_plain data: `muster data ...` alone, linked without LibTorch, so that it starts in milliseconds. For tests that
// read thousands of damaged files; that `muster` itself ends with the same messages and codes is tested elsewhere.
// probe_plain values FILE MODALITY: all rows of a modality as read_frames() gives them, float32, on standard output.
#include <cstdio>
#include <cstdlib>

#include <vector>

#include "base/error.h"
#include "core/data/container.h"
#include "launcher/commands/commands.h"

int data_probe(int argc, char** argv) {
  setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
  CLI::App app{"the data command of muster"};
  muster::launcher::add_data_command(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const muster::Error& error) {
    std::fprintf(stderr, "muster: %s\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "muster: internal error: %s\n", error.what());
    return 70;
  }
}

int values_probe(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    const auto dataset = muster::data::open_container(argv[2]);
    const int64_t position = dataset->index().find_modality(argv[3]);
    if (position < 0) return 2;
    const auto& modality = dataset->index().modalities[static_cast<size_t>(position)];
    const int64_t rows = modality.offsets.back(), half = rows / 2;
    std::vector<float> values(static_cast<size_t>(rows * modality.dim));
    // In two parts: the second begins in the middle.
    dataset->read_frames(position, 0, half, values.data());
    dataset->read_frames(position, half, rows - half, values.data() + half * modality.dim);
    return std::fwrite(values.data(), sizeof(float), values.size(), stdout) == values.size() ? 0 : 1;
  } catch (const muster::Error& error) {
    std::fprintf(stderr, "muster: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
