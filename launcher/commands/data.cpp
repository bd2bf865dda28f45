#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/print.h"
#include "base/text.h"
#include "core/data/container.h"
#include "core/data/inspect.h"
#include "core/data/synthetic.h"
#include "core/data/writer.h"
#include "launcher/commands/commands.h"
#include "launcher/work/output_file.h"
#include "launcher/work/seed_option.h"

namespace muster::launcher {
namespace {

void add_inspect(CLI::App& data) {
  struct Options {
    std::string path, target;
    bool as_json = false;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command = data.add_subcommand("inspect", "Show what is in a dataset file");
  command->add_option("FILE", options->path, "Dataset container (.h5)")->required();
  command->add_option("--target", options->target, "Show this label of /samples/targets instead of /samples/label");
  command->add_flag("--json", options->as_json, "Print JSON");
  command->callback([options] {
    data::OpenOptions open_options;
    open_options.target = options->target;
    open_options.labels_required = !options->target.empty();
    const auto dataset = data::open_container(options->path, open_options);
    // A path need not be UTF-8, JSON must be.
    constexpr auto replace = nlohmann::json::error_handler_t::replace;
    if (options->as_json)
      print_out("{}\n", data::inspect_json(*dataset).dump(2, ' ', true, replace));
    else
      print_out("{}", data::inspect(*dataset));
  });
}

void add_verify(CLI::App& data) {
  const auto path = std::make_shared<std::string>();
  CLI::App* command = data.add_subcommand("verify", "Check all of a dataset file: structure, labels, every feature");
  command->add_option("FILE", *path, "Dataset container (.h5)")->required();
  command->callback([path] {
    std::vector<std::string> warnings;
    const auto problems = data::verify(*path, &warnings);
    for (const auto& warning : warnings) print_error("warning: {}: {}\n", *path, warning);
    if (!problems.empty())
      throw Error(ExitCode::kBadData, fmt::format("{} is not good:\n  {}", *path, join(problems, "\n  ")));
    print_out("{}: good\n", *path);
  });
}

void add_synth(CLI::App& data) {
  struct Options {
    std::string kind, path;
    int64_t samples = 600;
    double noise = 1;
    uint64_t seed = 1;
    std::vector<std::string> without_signal;
    data::SyntheticSignal signal;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command = data.add_subcommand("synth", "Write a dataset with a known structure, for trying muster");
  command->add_option("--kind", options->kind, "classification (audio, vision) or regression (text, audio, vision)")
      ->required()
      ->check(CLI::IsMember({"classification", "regression"}));
  command->add_option("--samples", options->samples, "Number of samples")->capture_default_str();
  command->add_option("--noise", options->noise, "Standard deviation of the noise on every feature")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of the generator")->check(seed_problem)->capture_default_str();
  command->add_option("--without-signal", options->without_signal, "Modalities that show nothing of the label");
  command
      ->add_option("--agreement", options->signal.agreement,
                   "classification: how far audio and vision show the same, 0 to 1")
      ->capture_default_str();
  command->add_option("--text-encoders", options->signal.text_encoders, "regression: 1 to 3: text, text_b, text_c")
      ->capture_default_str();
  command->add_flag("--raw", options->signal.raw,
                    "classification: audio is a waveform, text are tokens, for pretrained encoders");
  command->add_option("-o,--output", options->path, "File to write (.h5)")->required();
  command->callback([options] {
    const auto kind =
        options->kind == "regression" ? data::SyntheticKind::kRegression : data::SyntheticKind::kClassification;
    options->signal.without.insert(options->without_signal.begin(), options->without_signal.end());
    require_output(options->path, OutputKind::kDataset, {});
    const auto dataset = data::make_synthetic(kind, options->samples, options->noise, options->seed, options->signal);
    data::write_container(options->path, *dataset);
    print_out("{}: {}, {} samples\n", options->path, dataset->index().name, dataset->index().size());
  });
}

}  // namespace

void add_data_command(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand("data", "Import, inspect, verify, join and export dataset files");
  command->require_subcommand(1);
  add_inspect(*command);
  add_verify(*command);
  add_synth(*command);
}

}  // namespace muster::launcher
