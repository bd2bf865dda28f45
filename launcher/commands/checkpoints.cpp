#include <cstdio>
#include <filesystem>
#include <memory>

#include "checkpoints/fingerprint.h"
#include "distributed/error.h"
#include "launcher/commands/commands.h"

namespace muster::launcher {

void add_checkpoints_command(CLI::App& parent) {
  auto* checkpoints = parent.add_subcommand("checkpoints", "Look at saved weights");
  checkpoints->require_subcommand(1);
  struct Arguments {
    std::string path;
    std::string which = "best";
  };
  auto arguments = std::make_shared<Arguments>();
  auto* fingerprint = checkpoints->add_subcommand("fingerprint", "Print one SHA-256 over the weights: equal for the same model only");
  fingerprint->add_option("PATH", arguments->path, "Run directory or .safetensors file")->required();
  fingerprint->add_option("--weights", arguments->which, "Of a run directory: best (default) or last")->check(CLI::IsMember({"best", "last"}));
  fingerprint->callback([arguments] {
    std::string path = arguments->path;
    if (std::filesystem::is_directory(path)) path += "/weights/" + arguments->which + ".safetensors";
    std::printf("%s\n", muster::checkpoints::fingerprint(muster::checkpoints::read_safetensors(path)).c_str());
  });
}

}  // namespace muster::launcher
