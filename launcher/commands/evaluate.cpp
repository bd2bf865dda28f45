#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/atomic_file.h"
#include "base/files.h"
#include "base/json.h"
#include "base/print.h"
#include "core/config/load.h"
#include "core/config/stored.h"
#include "core/run/progress.h"
#include "core/run/results.h"
#include "core/training/inference.h"
#include "core/training/robustness.h"
#include "launcher/commands/commands.h"
#include "launcher/robustness/robustness.h"
#include "launcher/study/report.h"
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
  bool by_group = false;
  std::vector<std::string> drop, noise;
  uint64_t seeds = 1;
  std::string plot;

  bool perturbs() const { return !drop.empty() || !noise.empty(); }
};

constexpr size_t kMostGroups = 50;  // whose tables a person would read

std::string hash_of_run(const std::string& run_directory) {
  const std::string path = run_directory + "/environment.json";
  return require_text(require_json_object(path), "data.sha256", path);
}

void print_dropped(const training::Predictor& predictor) {
  const training::DataSource& source = predictor.source();
  if (source.dropped > 0)
    print_error("left out {} of all samples, which {}: {}\n", source.dropped,
                models::spec_of(predictor.experiment()).modalities.every_sample_needs_all
                    ? "lack a modality that the model needs"
                    : "have none of the modalities that are used",
                source.dropped_ids);
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
  if (arguments.weights == "best" && arguments.data.empty() && !arguments.perturbs() && !arguments.by_group &&
      exists(of(arguments.split)))
    return of(arguments.split);
  std::string there;
  for (const char* split : {"valid", "test"})
    if (exists(of(split))) there += fmt::format(" --split {}", split);
  throw Error(
      ExitCode::kUsage,
      fmt::format("{}: the weights were not kept, so no other data or split can be evaluated, only what the best ones "
                  "have predicted{}:{}",
                  weights, arguments.perturbs() || arguments.by_group ? ", as a whole" : "", there));
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
      fmt::format("{} ({} split, {} samples{}); the weights were not kept", path, arguments.split, scores.samples,
                  result.dropped_samples > 0
                      ? fmt::format("; {} of the data's were left out, for a missing modality", result.dropped_samples)
                      : ""),
      arguments, scores.metrics, baseline, scores.class_names, scores.confusion, result.model_note);
}

void require_consistent(const Arguments& arguments) {
  if (!arguments.perturbs() && (!arguments.plot.empty() || arguments.seeds != 1))
    throw Error(ExitCode::kUsage, fmt::format("--{} is for --drop and --noise, e.g. --drop audio=0:0.1:1",
                                              arguments.plot.empty() ? "seeds" : "plot"));
  if (!arguments.plot.empty() && arguments.plot == arguments.output)
    throw Error(ExitCode::kUsage, fmt::format("--plot and --output name the same file: {}", arguments.plot));
  const auto require_place = [&](const std::string& path, OutputKind kind) {
    if (!path.empty()) require_output(path, kind, {arguments.data}, arguments.run_directory);
  };
  require_place(arguments.output, arguments.perturbs() ? OutputKind::kRobustness : OutputKind::kPredictions);
  require_place(arguments.plot, OutputKind::kRobustness);
}

// Throws the same on every rank.
void require_groups(const Arguments& arguments, const training::Predictor& predictor) {
  std::set<std::string> groups;
  for (const int64_t sample : predictor.samples())
    groups.insert(predictor.source().index().groups[static_cast<size_t>(sample)]);
  const std::string& source = predictor.source().dataset->source();
  if (groups == std::set<std::string>{""})
    throw SharedError(ExitCode::kBadData,
                      fmt::format("{}: --by-group: the data has no groups (/samples/group)", source));
  if (groups.size() > kMostGroups && !arguments.json)
    throw SharedError(
        ExitCode::kUsage,
        fmt::format("{}: --by-group: there are {} groups, which make no readable table; use --json for more "
                    "than {}",
                    source, groups.size(), kMostGroups));
}

using GroupEvaluations = std::map<std::string, training::Evaluation>;

void print_groups(const GroupEvaluations& groups, const std::vector<std::string>& class_names) {
  const auto name_of_group = [](const std::string& name) { return name.empty() ? "(no group)" : name; };
  Table table;
  table.caption = "by group";
  std::vector<metrics::Metrics> scores;
  for (const auto& group : groups) scores.push_back(group.second.metrics);
  const auto names = metrics::shown_names(scores);
  table.header = {"group", "samples"};
  table.header.insert(table.header.end(), names.begin(), names.end());
  for (const auto& [name, evaluation] : groups) {
    table.rows.push_back({name_of_group(name), fmt::format("{}", evaluation.predictions.samples.size())});
    for (const auto& metric : names) {
      const double value = metrics::metric_value(evaluation.metrics, metric);
      table.rows.back().push_back(std::isfinite(value) ? fmt::format("{:.4f}", value) : "undefined");
    }
  }
  print_out("\n{}", as_text(table));
  for (const auto& [name, evaluation] : groups)
    if (!evaluation.confusion.empty())
      print_out("\n{}\n{}", name_of_group(name), run::confusion_table(class_names, evaluation.confusion));
}

nlohmann::json groups_json(const GroupEvaluations& groups) {
  nlohmann::json all = nlohmann::json::object();
  for (const auto& [name, evaluation] : groups) {
    all[name] = {{"samples", evaluation.predictions.samples.size()}, {"metrics", run::to_json(evaluation.metrics)}};
    if (!evaluation.confusion.empty()) all[name]["confusion"] = evaluation.confusion;
  }
  return all;
}

// What rank 0 prints and writes.
void report(const Arguments& arguments, const training::Predictor& predictor, const training::Evaluation& evaluation,
            const std::vector<training::PerturbationCurve>& curves,
            const std::vector<training::PerturbedScores>& perturbed) {
  const data::DatasetIndex& index = predictor.source().index();
  print_dropped(predictor);
  if (!arguments.output.empty())
    write_file_atomically(arguments.output, arguments.perturbs() ? robustness_csv(curves, perturbed)
                                                                 : run::predictions_csv(index, evaluation.predictions));
  GroupEvaluations groups;
  if (arguments.by_group) groups = training::evaluations_by_group(index, evaluation.predictions);
  if (arguments.json) {
    nlohmann::json all = run::to_json(evaluation);
    if (arguments.by_group) all["groups"] = groups_json(groups);
    if (arguments.perturbs()) all["perturbations"] = robustness_json(curves, perturbed);
    std::printf("%s\n", json_text(all, 2).c_str());
  } else {
    print_scores(fmt::format("{} weights, {} split, {} samples, loss {:.6f}", arguments.weights, arguments.split,
                             evaluation.predictions.samples.size(), evaluation.loss),
                 arguments, evaluation.metrics, predictor.baseline(), index.class_names, evaluation.confusion,
                 models::spec_of(predictor.experiment()).note);
    if (arguments.by_group) print_groups(groups, index.class_names);
    if (arguments.perturbs()) print_out("\n{}", robustness_tables(curves, perturbed));
  }
  std::fflush(stdout);
  if (!arguments.plot.empty()) write_file_atomically(arguments.plot, robustness_plot(curves, perturbed));
}

void run(const Arguments& arguments) {
  require_consistent(arguments);
  const auto curves = perturbation_curves(arguments.drop, arguments.noise);
  run_job([&](distributed::Communicator& communicator) {
    const std::string& directory = arguments.run_directory;
    config::Experiment experiment;
    training::InferenceOptions options;
    options.weights = fmt::format("{}/weights/{}.safetensors", directory, arguments.weights);
    options.run_directory = directory;
    options.data = arguments.data;
    options.split = arguments.split;
    options.request =
        fmt::format(" drop {} noise {} seeds {}{}", fmt::join(arguments.drop, " "), fmt::join(arguments.noise, " "),
                    arguments.seeds, arguments.by_group ? " by group" : "");
    std::string predictions;
    distributed::run_on_all_ranks(communicator, [&] {
      predictions = kept_predictions(arguments, options.weights);
      if (!predictions.empty()) {
        if (communicator.rank() == 0) evaluate_predictions(arguments, predictions);
        return;
      }
      experiment = config::load_stored_experiment(directory + "/config.txtpb").experiment;
      // Another file is another question; the run's own must be what it was.
      if (arguments.data.empty() || arguments.perturbs()) options.training_hash = hash_of_run(directory);
      if (arguments.data.empty()) options.expected_hash = options.training_hash;
    });
    if (!predictions.empty()) return;
    training::Predictor predictor(experiment, options, communicator);
    distributed::run_on_all_ranks(communicator, [&] { training::require_perturbable(predictor, curves); });
    if (arguments.by_group) require_groups(arguments, predictor);
    const auto evaluation = predictor.evaluate();
    run::Progress progress(communicator.rank() == 0);
    const auto perturbed = training::evaluate_perturbed(predictor, evaluation, curves, arguments.seeds,
                                                        [&](const auto&... what) { progress.work(what...); });
    progress.clear();
    if (communicator.rank() == 0) report(arguments, predictor, evaluation, curves, perturbed);
  });
}

// How the model weighs its streams: mean and standard deviation over all samples, and over those that it predicts
// alike; of multi-label data, over those that it predicts to have a class.
std::string gates_table(const data::DatasetIndex& index, const run::Predictions& predictions) {
  const bool regression = index.task == data::Task::kRegression;
  std::vector<std::string> names{"all"};
  if (!regression)
    for (const auto& name : index.class_names) names.push_back("predicted " + name);
  else
    names.insert(names.end(), {"prediction < 0", "prediction >= 0"});
  // The rows of each of them.
  std::vector<std::vector<size_t>> rows(names.size());
  const auto classes = predictions.classes();  // of regression: 0
  const auto width_of_outputs = static_cast<size_t>(predictions.outputs.size(1));
  const auto values = predictions.values();
  for (size_t row = 0; row < predictions.samples.size(); ++row) {
    rows[0].push_back(row);
    if (regression) rows[values[row] < 0 ? 1 : 2].push_back(row);
    if (index.task == data::Task::kClassification) rows[1 + static_cast<size_t>(classes[row])].push_back(row);
    if (index.task == data::Task::kMultilabel)
      for (size_t c = 0; c < width_of_outputs; ++c)
        if (values[row * width_of_outputs + c] > 0) rows[1 + c].push_back(row);
  }
  Table table;
  table.caption = "mean ± standard deviation over samples";
  table.header = {""};
  for (size_t i = 0; i < names.size(); ++i) table.header.push_back(fmt::format("{} ({})", names[i], rows[i].size()));
  const size_t width = predictions.detail_names.size();
  for (size_t detail = 0; detail < width; ++detail) {
    table.rows.push_back({predictions.detail_names[detail]});
    for (const auto& members : rows) {
      Values numbers;
      for (const size_t row : members)
        numbers.push_back(predictions.details.const_data_ptr<double>()[row * width + detail]);
      const Spread found = spread(numbers);
      table.rows.back().push_back(found.n == 0   ? "-"
                                  : found.n == 1 ? fmt::format("{:.4f}", found.mean)
                                                 : fmt::format("{:.4f} ± {:.4f}", found.mean, found.std));
    }
  }
  return as_text(table);
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
  command->add_flag("--by-group", arguments->by_group, "Also the scores of each group (session, speaker or video)");
  command
      ->add_option("--drop", arguments->drop,
                   "MODALITY=RATES: also the scores with this modality missing in a share of the samples, e.g. "
                   "audio=0:0.1:1 (from, step, to) or audio=0.5; repeatable")
      ->allow_extra_args(false);
  command
      ->add_option("--noise", arguments->noise,
                   "MODALITY=RATES: also the scores with noise on this modality, of so many standard deviations, e.g. "
                   "vision=0:0.5:2; repeatable")
      ->allow_extra_args(false);
  command->add_option("--seeds", arguments->seeds, "How often --drop and --noise draw their random numbers (1)")
      ->check(CLI::Range(1, 1000));
  command->add_option("--plot", arguments->plot, "Also draw what --drop and --noise give into this SVG file");
  command->add_option(
      "-o,--output", arguments->output,
      "Also write a CSV file: the predictions, or, with --drop or --noise, the scores of each evaluation");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments] { run(*arguments); });
}

void add_predict_command(CLI::App& parent) {
  struct PredictArguments {
    std::string weights, config, data, output;
    bool gates = false;
  };
  auto arguments = std::make_shared<PredictArguments>();
  auto* command = parent.add_subcommand("predict", "Apply saved weights to a dataset file, with or without labels");
  command->add_option("--weights", arguments->weights, "Weights (.safetensors)")->required();
  command->add_option("--config", arguments->config, "The run's config.txtpb, or its experiment file")->required();
  command->add_option("--data", arguments->data, "Dataset container (.h5)")->required();
  command->add_option("-o,--output", arguments->output, "CSV file to write")->required();
  command->add_flag("--gates", arguments->gates,
                    "Also write how the model weighs its streams, sample by sample, and print a summary (miar)");
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
      options.with_details = arguments->gates;
      options.request = arguments->gates ? " gates" : "";
      training::Predictor predictor(loaded.experiment, options, communicator);
      const run::Predictions predictions = predictor.evaluate().predictions;
      if (communicator.rank() != 0) return;
      const data::DatasetIndex& index = predictor.source().index();
      print_dropped(predictor);
      write_file_atomically(arguments->output, run::predictions_csv(index, predictions));
      print_out("{}: predictions of {} samples\n", arguments->output, predictions.samples.size());
      if (arguments->gates) print_out("\n{}", gates_table(index, predictions));
    });
  });
}

}  // namespace muster::launcher
