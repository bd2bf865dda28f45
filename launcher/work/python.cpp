#include "launcher/work/python.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "distributed/communicator.h"

namespace muster::launcher {
namespace {

std::string from_environment(const char* variable, const char* otherwise) {
  const char* own = std::getenv(variable);
  return own && *own ? own : otherwise;
}

}  // namespace

std::vector<std::string> python_command(std::initializer_list<std::string_view> texts) {
  // -I: a module is never taken from the working directory, where somebody else may have put one.
  std::vector<std::string> command{from_environment("MUSTER_PYTHON", MUSTER_PYTHON), "-I", "-u", "-c"};
  command.insert(command.end(), texts.begin(), texts.end());
  return command;
}

void become_importer(const std::string& script, const std::string& command, const std::vector<std::string>& arguments) {
  const std::string path = fmt::format("{}/{}.py", from_environment("MUSTER_IMPORTERS", MUSTER_IMPORTERS), script);
  if (access(path.c_str(), R_OK) != 0)
    throw Error(ExitCode::kUsage, fmt::format("{} is not there: `{}` needs the folder importers/ of muster's sources; "
                                              "MUSTER_IMPORTERS names another place",
                                              path, command));
  if (distributed::expected_world_size() > 1)
    throw Error(ExitCode::kUsage, fmt::format("`{}` is for one process; start it without mpirun or srun", command));
  setenv("MUSTER_COMMAND", command.c_str(), /*overwrite=*/1);
  // As -I, but the folder of the program stays where modules are looked for.
  std::vector<std::string> all{from_environment("MUSTER_PYTHON", MUSTER_PYTHON), "-E", "-s", "-B", path};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& argument : all) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
  throw Error(ExitCode::kUsage, fmt::format("{} cannot be run: {}. {}", all[0], std::strerror(errno), kPythonHint));
}

}  // namespace muster::launcher
