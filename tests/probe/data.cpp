// probe_plain data: `muster data ...` alone, linked without LibTorch, so that it starts in milliseconds. For tests that
// read thousands of damaged files; that `muster` itself ends with the same messages and codes is tested elsewhere.
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
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
