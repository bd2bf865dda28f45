#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/atomic_file.h"
#include "base/files.h"
#include "base/print.h"
#include "base/text.h"
#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "core/run/stop.h"
#include "core/training/data_source.h"
#include "core/training/same_job.h"
#include "launcher/commands/commands.h"
#include "launcher/search/scheduler.h"
#include "launcher/search/search_directory.h"
#include "launcher/search/spec.h"
#include "launcher/search/trials.h"
#include "launcher/study/study.pb.h"
#include "launcher/work/output_file.h"
#include "launcher/work/spec_file.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

struct SearchArguments {
  std::string spec;       // run
  std::string directory;  // the others; of run: --search-dir
  std::string output;     // best, export
  bool json = false;      // status
};

json opening_of(const SearchDirectory& directory) {
  const Search& search = directory.spec().search;
  return {{"storage", directory.storage()},
          {"study", search.name()},
          {"direction", search.objective().direction() == Objective::MAXIMIZE ? "maximize" : "minimize"},
          {"metric", search.objective().metric()},
          {"sampler", optuna_sampler(search)},
          {"pruner", optuna_pruner(search)},
          {"seed", search.seed()},
          {"space", optuna_space(search)}};
}

constexpr size_t kFewSamples = 100;

// Says before anything is trained what every trial would fail for. Where trials choose their data, each says it for
// itself. Returns a note, perhaps empty, on a validation split that is too small to choose by.
std::string refuse_without_validation(const SearchSpec& spec) {
  if (spec.search.repeats().seeds() > 1) return "";
  for (const auto& parameter : spec.search.parameters())
    if (parameter.path() == "seed" || parameter.path().rfind("data.", 0) == 0) return "";
  training::DataSource data;
  data::Split split;
  try {
    data = training::open_training_data(spec.base);
    split = training::split_data(spec.base, data, true);
  } catch (const Error&) {
    return "";  // a trial's values may fix it; otherwise this is why trials fail
  }
  training::require_validation_split(spec.base, data, split);
  if (split.valid.size() >= kFewSamples || spec.search.repeats().folds() > 0) return "";
  return fmt::format(
      "note: the validation split has {}, so the best trial may owe its score to chance. `repeats` judges each trial "
      "by several seeds or folds",
      plural(static_cast<int64_t>(split.valid.size()), "sample"));
}

// "trial 7, accuracy 0.81"
std::string trial_text(const json& trial, const Search& search, const char* between = ", ") {
  return fmt::format("trial {}{}{} {:.6g}", trial["number"].get<int64_t>(), between, search.objective().metric(),
                     trial["value"].get<double>());
}

// why: there is no more to do although trials are left; may be empty.
void print_end(const SearchDirectory& directory, const json& standing, const std::string& why) {
  const Search& search = directory.spec().search;
  const TrialCounts counts = counts_of(standing);
  print_out("{} trials: {} complete, {} pruned, {} failed, {} running\n", counts.ended() + counts.running,
            counts.complete, counts.pruned, counts.failed, counts.running);
  if (counts.ended() < search.budget().trials() && !why.empty())
    print_out("{} of the budget's {} trials are left: {}\n", search.budget().trials() - counts.ended(),
              search.budget().trials(), why);
  if (!standing["best"].empty()) {
    const auto& best = standing["best"][0];
    print_out("best: {}\n", trial_text(best, search));
    for (const auto& text : overrides_of(best["params"])) print_out("  --set {}\n", text);
  }
  std::fflush(stdout);
}

void run(const SearchArguments& arguments) {
  run::catch_stop_signals();
  run_job([&](distributed::Communicator& world) {
    std::optional<SearchDirectory> directory;
    const bool is_main = world.rank() == 0;
    std::string command_line = fmt::format("muster search run {}", shell_quoted(arguments.spec));
    if (!arguments.directory.empty()) command_line += " --search-dir " + shell_quoted(arguments.directory);
    std::string path, note;
    distributed::run_on_all_ranks(world, [&] {
      const SearchSpec spec = load_search(arguments.spec);
      path = arguments.directory.empty() ? "runs/" + spec.search.name() : arguments.directory;
      require_whole_groups(world.size(), spec.search.ranks_per_trial(), "ranks_per_trial");
      if (is_main) note = refuse_without_validation(spec);
      run::save_on_stop();
      if (!is_main) return;
      directory.emplace(path, spec);
    });
    distributed::run_on_all_ranks(world, [&] {
      if (!is_main) directory.emplace(path);
    });
    const SearchSpec& spec = directory->spec();
    training::require_same_job(world, resolved_text(spec.search) + config::resolved_text(spec.base) + command_line);

    ProgressLine progress;
    std::optional<Scheduler> scheduler;
    distributed::run_on_all_ranks(world, [&] {
      if (is_main) scheduler.emplace(*directory, opening_of(*directory), progress);
    });
    const uint32_t per_trial = spec.search.ranks_per_trial();
    WorkGroup group(world, per_trial, spec.base.training(), is_main ? &*scheduler : nullptr);
    if (!note.empty()) progress.note(note);
    if (is_main)
      progress.note(fmt::format("{}: {} of {}, {} trials of {} epochs in all", path, plural(group.groups(), "group"),
                                plural(per_trial, "rank"), spec.search.budget().trials(),
                                spec.search.budget().epochs()));
    run_trials(*directory, group, command_line, [&](bool stopped) {
      progress.end();
      scheduler->tidy();
      print_end(*directory, scheduler->standing(), stopped ? "" : scheduler->ended_early());
      if (!stopped) scheduler->require_any_success();
    });
  });
}

// Of a search that may be running: reads only.
OptunaProcess open_study(const SearchDirectory& directory) {
  json opening = opening_of(directory);
  opening["read_only"] = true;
  return OptunaProcess(std::move(opening));
}

void print_status(const SearchArguments& arguments) {
  const SearchDirectory directory(arguments.directory);
  OptunaProcess process = open_study(directory);
  const json standing = process.request({{"op", "counts"}, {"best", 5}});
  const Search& search = directory.spec().search;
  if (arguments.json) {
    const json document = {{"counts", standing["counts"]},
                           {"running", standing["running"]},
                           {"best", standing["best"]},
                           {"budget", search.budget().trials()}};
    print_out("{}\n", document.dump(2, ' ', true));
    return;
  }
  print_out("{}: {} of the validation split, {}\n", arguments.directory, search.objective().metric(),
            Objective::Direction_Name(search.objective().direction()));
  const TrialCounts counts = counts_of(standing);
  print_out("  {} of {} trials ended: {} complete, {} pruned, {} failed; {} running\n", counts.ended(),
            search.budget().trials(), counts.complete, counts.pruned, counts.failed, counts.running);
  for (const auto& best : standing["best"])
    print_out("  trial {}: {:.6g}  {}\n", best["number"].get<int64_t>(), best["value"].get<double>(),
              join(overrides_of(best["params"]), "  "));
}

// The study file that repeats the best trial, an experiment file beside it.
std::string study_of_best(const Search& search, const std::string& experiment) {
  Study study;
  study.set_name(search.name() + "-best-study");
  study.set_base(experiment);
  study.set_base_label(search.name() + "-best");
  study.set_seeds(5);
  if (search.repeats().folds() > 0) study.set_folds(search.repeats().folds());
  return spec_text(study, "launcher/study/study.proto");
}

void print_best(const SearchArguments& arguments) {
  const SearchDirectory directory(arguments.directory);
  const json standing = open_study(directory).request({{"op", "counts"}, {"best", 1}});
  if (standing["best"].empty())
    throw Error(ExitCode::kUsage, fmt::format("{}: no trial is complete yet", arguments.directory));
  const auto& best = standing["best"][0];
  auto overrides = overrides_of(best["params"]);
  overrides.push_back(fmt::format("name={}-best", directory.spec().search.name()));
  const auto loaded = config::load_stored_experiment(directory.file("base.txtpb"), overrides);
  const std::string output = arguments.output.empty() ? directory.file("best.txtpb") : arguments.output;
  const std::filesystem::path path(output);
  const std::string study_output = path.parent_path() / (path.stem().string() + "-study.txtpb");
  require_output(output, OutputKind::kExperiment, {directory.file("base.txtpb")}, arguments.directory);
  require_output(study_output, OutputKind::kStudy, {output}, arguments.directory);
  write_file_atomically(output, config::resolved_text(loaded.experiment));
  write_file_atomically(study_output, study_of_best(directory.spec().search, path.filename().string()));
  print_out("{}\n", trial_text(best, directory.spec().search, ": "));
  for (const auto& text : overrides_of(best["params"])) print_out("  {}\n", text);
  print_out("train it with: muster train {}\n", shell_quoted(output));
  print_out("repeat it over seeds with: muster study {}\n", shell_quoted(study_output));
}

// A field of CSV.
std::string field(const json& value) {
  if (value.is_null()) return "";
  return csv_field(value.is_string() ? value.get<std::string>() : value.dump());
}

void export_all(const SearchArguments& arguments) {
  const SearchDirectory directory(arguments.directory);
  OptunaProcess process = open_study(directory);
  const std::string folder = arguments.output.empty() ? directory.file("export") : arguments.output;
  require_output_folder(folder, arguments.directory);
  for (const char* name : {"trials.csv", "importance.csv", "history.svg", "slices.svg", "parallel.svg",
                           "intermediate.svg", "importance.svg"})
    require_output(fmt::format("{}/{}", folder, name), OutputKind::kExport, {}, arguments.directory);
  make_folders(folder);
  const Search& search = directory.spec().search;
  std::vector<std::string> header{"trial", "state", "value", "seconds", "start", "end", "reason"};
  for (const auto& parameter : search.parameters()) header.push_back(csv_field(parameter.path()));
  std::string csv = join(header, ",") + "\n";
  const json all = process.request({{"op", "trials"}});
  for (const auto& trial : all["trials"]) {
    std::vector<std::string> row;
    for (const char* column : {"number", "state", "value", "seconds", "start", "end", "reason"})
      row.push_back(field(trial[column]));
    for (const auto& parameter : search.parameters())
      row.push_back(field(trial["params"].value(parameter.path(), json())));
    csv += join(row, ",") + "\n";
  }
  write_file_atomically(folder + "/trials.csv", csv);
  print_out("{}/trials.csv\n", folder);
  const json importance = process.request({{"op", "importance"}});
  std::string shares = "parameter,importance\n";
  for (const auto& [path, share] : importance["importance"].items())
    shares += fmt::format("{},{}\n", field(path), field(share));
  write_file_atomically(folder + "/importance.csv", shares);
  const bool empty = importance["importance"].empty();
  print_out("{}/importance.csv{}\n", folder, empty ? fmt::format(" (empty: {})", importance.value("why", "")) : "");
  const json plots = process.request({{"op", "plots"}, {"folder", std::filesystem::absolute(folder).string()}});
  for (const auto& file : plots["files"])
    print_out("{}/{}\n", folder, std::filesystem::path(file.get<std::string>()).filename().string());
  for (const auto& [file, why] : plots["skipped"].items()) print_error("no {}: {}\n", file, why.get<std::string>());
}

}  // namespace

void add_search_command(CLI::App& parent) {
  auto* command = parent.add_subcommand("search", "Search for good hyperparameters, many trials in one job");
  command->require_subcommand(1);
  auto arguments = std::make_shared<SearchArguments>();
  auto* start =
      command->add_subcommand("run", "Begin or continue a search: alone, or as each rank under mpirun or srun");
  start->add_option("SPEC", arguments->spec, "Search file (.txtpb)")->required();
  start->add_option("--search-dir", arguments->directory, "Where it is kept (default: runs/<search's name>)");
  start->callback([arguments] { run(*arguments); });
  const auto reader = [&](const char* name, const char* help, void (*work)(const SearchArguments&)) {
    auto* one = command->add_subcommand(name, help);
    one->add_option("SEARCH_DIR", arguments->directory, "The search's directory")->required();
    one->callback([arguments, work] { work(*arguments); });
    return one;
  };
  reader("status", "Show how far it is and its best trials; also while it runs", print_status)
      ->add_flag("--json", arguments->json, "For programs");
  reader("best", "Show the best trial, and write an experiment file to train it and a study file to repeat it",
         print_best)
      ->add_option(
          "-o,--output", arguments->output,
          "The experiment file (default: best.txtpb in the search's directory); the study file lies beside it");
  reader("export", "Write all trials as CSV, the importance of the parameters, and plots", export_all)
      ->add_option("-o,--output", arguments->output,
                   "Folder for the files (default: export in the search's directory)");
}

}  // namespace muster::launcher
