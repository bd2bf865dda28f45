#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/files.h"
#include "base/json.h"
#include "base/print.h"
#include "core/config/load.h"
#include "core/config/stored.h"
#include "core/run/results.h"
#include "core/training/inference.h"
#include "launcher/commands/commands.h"
#include "launcher/work/output_file.h"

namespace muster::launcher {
namespace {

struct Arguments {
  std::string run_directory;
  std::string data;
  std::string split = "test";
  std::string weights = "best";
  std::string output;
  bool json = false;
};

std::string hash_of_run(const std::string& run_directory) {
  const std::string path = run_directory + "/environment.json";
  return require_text(require_json_object(path), "data.sha256", path);
}

void print_dropped(const training::DataSource& source) {
  if (source.dropped > 0)
    print_error("left out {} samples that lack a modality the model needs: {}\n", source.dropped, source.dropped_ids);
}

void run(const Arguments& arguments) {
  if (!arguments.output.empty())
    require_output(arguments.output, OutputKind::kPredictions, {arguments.data}, arguments.run_directory);
  run_job([&](distributed::Communicator& communicator) {
    const std::string& directory = arguments.run_directory;
    config::Experiment experiment;
    training::InferenceOptions options;
    options.weights = fmt::format("{}/weights/{}.safetensors", directory, arguments.weights);
    options.data = arguments.data;
    options.split = arguments.split;
    distributed::run_on_all_ranks(communicator, [&] {
      experiment = config::load_stored_experiment(directory + "/config.txtpb").experiment;
      // Another file is another question; the run's own must be what it was.
      if (arguments.data.empty()) options.expected_hash = hash_of_run(directory);
    });
    const auto inference = training::infer(experiment, options, communicator);
    if (communicator.rank() != 0) return;
    print_dropped(inference.source);
    const auto& evaluation = inference.evaluation;
    if (!arguments.output.empty())
      write_file_atomically(arguments.output, run::predictions_csv(inference.source.index(), evaluation.predictions));
    if (arguments.json) {
      std::printf("%s\n", run::to_json(evaluation).dump(2).c_str());
      return;
    }
    std::vector<run::ResultColumn> columns{{arguments.split, evaluation.metrics}};
    if (!inference.baseline.empty()) columns.push_back({arguments.split + " baseline", inference.baseline});
    print_out("{} weights, {} split, {} samples, loss {:.6f}\n\n{}", arguments.weights, arguments.split,
              evaluation.predictions.samples.size(), evaluation.loss, run::results_table(columns));
    if (const std::string& note = models::spec_of(experiment).note; !note.empty()) print_out("\n{}\n", note);
    if (!evaluation.confusion.empty())
      print_out("\n{}", run::confusion_table(inference.source.index().class_names, evaluation.confusion));
  });
}

}  // namespace

void add_evaluate_command(CLI::App& parent) {
  auto arguments = std::make_shared<Arguments>();
  auto* command =
      parent.add_subcommand("evaluate", "Metrics of a finished run's weights; ranks share the work under mpirun");
  command->add_option("RUN_DIR", arguments->run_directory, "Run directory")->required();
  command->add_option("--data", arguments->data, "Evaluate on this dataset file instead of the run's");
  command->add_option("--split", arguments->split, "train, valid, test (default) or all")
      ->check(CLI::IsMember({"train", "valid", "test", "all"}));
  command->add_option("--weights", arguments->weights, "best (default) or last")
      ->check(CLI::IsMember({"best", "last"}));
  command->add_option("-o,--output", arguments->output, "Also write predictions to this CSV file");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments] { run(*arguments); });
}

void add_predict_command(CLI::App& parent) {
  struct PredictArguments {
    std::string weights, config, data, output;
  };
  auto arguments = std::make_shared<PredictArguments>();
  auto* command = parent.add_subcommand("predict", "Apply saved weights to a dataset file, with or without labels");
  command->add_option("--weights", arguments->weights, "Weights (.safetensors)")->required();
  command->add_option("--config", arguments->config, "The run's config.txtpb, or its experiment file")->required();
  command->add_option("--data", arguments->data, "Dataset container (.h5)")->required();
  command->add_option("-o,--output", arguments->output, "CSV file to write")->required();
  command->callback([arguments] {
    require_output(arguments->output, OutputKind::kPredictions,
                   {arguments->weights, arguments->config, arguments->data}, parent_of(arguments->config));
    run_job([&](distributed::Communicator& communicator) {
      config::LoadedExperiment loaded;
      distributed::run_on_all_ranks(communicator, [&] { loaded = config::load_any_experiment(arguments->config); });
      training::InferenceOptions options;
      options.weights = arguments->weights;
      options.data = arguments->data;
      options.split = "all";
      options.needs_labels = false;
      const auto inference = training::infer(loaded.experiment, options, communicator);
      if (communicator.rank() != 0) return;
      print_dropped(inference.source);
      write_file_atomically(arguments->output,
                            run::predictions_csv(inference.source.index(), inference.evaluation.predictions));
      print_out("{}: predictions of {} samples\n", arguments->output, inference.evaluation.predictions.samples.size());
    });
  });
}

}  // namespace muster::launcher
