#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
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

// The table for people. baseline: empty where it is not known.
void print_scores(const std::string& heading, const Arguments& arguments, const metrics::Metrics& metrics,
                  const metrics::Metrics& baseline, const std::vector<std::string>& class_names,
                  const metrics::Confusion& confusion, const std::string& note) {
  std::vector<run::ResultColumn> columns{{arguments.split, metrics}};
  if (!baseline.empty()) columns.push_back({arguments.split + " baseline", baseline});
  print_out("{}\n\n{}", heading, run::results_table(columns));
  if (!note.empty()) print_out("\n{}\n", note);
  if (!confusion.empty()) print_out("\n{}", run::confusion_table(class_names, confusion));
}

// Trials of a search and cells of a study keep the predictions of their best weights, but not always the weights. The
// file with these predictions; empty where the weights are there, or something else is asked for.
std::string kept_predictions(const Arguments& arguments, const std::string& weights) {
  const auto of = [&](const std::string& split) {
    return fmt::format("{}/predictions-{}.csv", arguments.run_directory, split);
  };
  const auto exists = [](const std::string& path) { return std::filesystem::exists(path); };
  if (exists(weights) || !(exists(of("valid")) || exists(of("test")))) return "";
  if (arguments.weights == "best" && arguments.data.empty() && exists(of(arguments.split))) return of(arguments.split);
  std::string there;
  for (const char* split : {"valid", "test"})
    if (exists(of(split))) there += fmt::format(" --split {}", split);
  throw Error(
      ExitCode::kUsage,
      fmt::format("{}: the weights were not kept, so no other data or split can be evaluated, only what the best ones "
                  "have predicted:{}",
                  weights, there));
}

void evaluate_predictions(const Arguments& arguments, const std::string& path) {
  const run::RunResult result = run::read_result(arguments.run_directory);
  const run::PredictionScores scores = run::scores_of_predictions(
      {path}, {arguments.split == "valid" ? result.validation_samples : result.test_samples});
  if (!arguments.output.empty()) write_file_atomically(arguments.output, read_file(path, run::kLargestPredictions));
  if (arguments.json) {
    nlohmann::json all = {{"metrics", run::to_json(scores.metrics)}, {"samples", scores.samples}};
    if (!scores.confusion.empty()) all["confusion"] = scores.confusion;
    std::printf("%s\n", all.dump(2).c_str());
    return;
  }
  const auto& stored = arguments.split == "valid" ? result.validation_baseline : result.test_baseline;
  metrics::Metrics baseline;
  for (const auto& [name, value] : scores.metrics)
    if (stored.contains(name))
      baseline.emplace_back(name, stored[name].is_number() ? stored[name].get<double>() : std::nan(""));
  print_scores(
      fmt::format("{} ({} split, {} samples); the weights were not kept", path, arguments.split, scores.samples),
      arguments, scores.metrics, baseline, scores.class_names, scores.confusion, result.model_note);
}

void run(const Arguments& arguments) {
  if (!arguments.output.empty())
    require_output(arguments.output, OutputKind::kPredictions, {arguments.data}, arguments.run_directory);
  run_job([&](distributed::Communicator& communicator) {
    const std::string& directory = arguments.run_directory;
    config::Experiment experiment;
    training::InferenceOptions options;
    options.weights = fmt::format("{}/weights/{}.safetensors", directory, arguments.weights);
    options.run_directory = directory;
    options.data = arguments.data;
    options.split = arguments.split;
    std::string predictions;
    distributed::run_on_all_ranks(communicator, [&] {
      predictions = kept_predictions(arguments, options.weights);
      if (!predictions.empty()) {
        if (communicator.rank() == 0) evaluate_predictions(arguments, predictions);
        return;
      }
      experiment = config::load_stored_experiment(directory + "/config.txtpb").experiment;
      // Another file is another question; the run's own must be what it was.
      if (arguments.data.empty()) options.expected_hash = hash_of_run(directory);
    });
    if (!predictions.empty()) return;
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
    print_scores(fmt::format("{} weights, {} split, {} samples, loss {:.6f}", arguments.weights, arguments.split,
                             evaluation.predictions.samples.size(), evaluation.loss),
                 arguments, evaluation.metrics, inference.baseline, inference.source.index().class_names,
                 evaluation.confusion, models::spec_of(experiment).note);
  });
}

}  // namespace

void add_evaluate_command(CLI::App& parent) {
  auto arguments = std::make_shared<Arguments>();
  auto* command = parent.add_subcommand("evaluate",
                                        "Metrics of a finished run's weights, or of the predictions that a trial or a "
                                        "study's run has kept; ranks share the "
                                        "work under mpirun");
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
      if (config::is_stored_experiment(arguments->config)) options.run_directory = parent_of(arguments->config);
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
