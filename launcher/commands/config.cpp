#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "base/print.h"
#include "core/config/load.h"
#include "core/config/resolved_text.h"
#include "launcher/commands/commands.h"

namespace muster::launcher {

void add_config_command(CLI::App& parent) {
  struct Arguments {
    std::string config;
    std::vector<std::string> overrides;
    std::string preset;
  };
  auto arguments = std::make_shared<Arguments>();
  auto* command = parent.add_subcommand("config", "Print an experiment with every value resolved and documented");
  auto* config = command->add_option("CONFIG", arguments->config, "Experiment file (.txtpb)");
  command->add_option("--set", arguments->overrides, "Override a value (repeatable)")->allow_extra_args(false);
  auto* preset = command->add_option("--preset", arguments->preset, "Print what this preset sets instead");
  config->excludes(preset);
  command->callback([=] {
    if (!arguments->preset.empty()) {
      std::fputs(config::preset_text(arguments->preset).c_str(), stdout);
      return;
    }
    if (arguments->config.empty()) throw CLI::RequiredError("CONFIG (or --preset NAME)");
    const auto loaded = config::load_experiment(arguments->config, arguments->overrides);
    for (const auto& note : loaded.notes) print_error("note: {}\n", note);
    std::fputs(config::documented_text(loaded.experiment).c_str(), stdout);
  });
}

}  // namespace muster::launcher
