#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "base/print.h"
#include "base/text.h"
#include "core/config/stored.h"
#include "core/run/stop.h"
#include "core/training/encode.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/train.h"
#include "launcher/work/output_file.h"

namespace muster::launcher {

void add_encode_command(CLI::App& parent) {
  struct Options {
    std::string config, output;
    std::vector<std::string> overrides;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command = parent.get_subcommand("data")->add_subcommand(
      "encode", "Extract features: run an experiment's encoders over its data, on any number of ranks");
  command->add_option("CONFIG", options->config, "Experiment file (.txtpb) with encoders")->required();
  command->add_option("-o,--output", options->output, "Dataset container (.h5) to write")->required();
  command->add_option("--set", options->overrides, "path=value: changes a setting of the experiment; repeatable");
  command->callback([options] {
    run::catch_stop_signals();
    run_job([&](distributed::Communicator& communicator) {
      config::LoadedExperiment loaded;
      distributed::run_on_all_ranks(communicator, [&] {
        loaded = config::load_any_experiment(options->config, options->overrides);
        require_output(options->output, OutputKind::kDataset, {options->config, loaded.experiment.data().path()});
      });
      run::Progress progress(communicator.rank() == 0);
      const auto encoded = training::encode_dataset(loaded.experiment, options->output, communicator, progress);
      if (communicator.rank() != 0) return;
      print_out("{}: {} samples encoded{}\n", options->output, encoded.samples,
                encoded.found > 0 ? fmt::format(", {} of them by an earlier call", encoded.found) : "");
    });
  });
}

}  // namespace muster::launcher
