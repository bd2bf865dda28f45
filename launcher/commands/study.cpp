#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "base/atomic_file.h"
#include "base/print.h"
#include "base/text.h"
#include "core/config/resolved_text.h"
#include "core/run/stop.h"
#include "core/training/data_source.h"
#include "core/training/same_job.h"
#include "launcher/commands/commands.h"
#include "launcher/study/grid.h"
#include "launcher/study/report.h"
#include "launcher/study/results.h"
#include "launcher/study/study_directory.h"
#include "launcher/work/spec_file.h"
#include "launcher/work/work_group.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

struct StudyArguments {
  std::string spec, directory;
  std::vector<std::string> set;
  bool only_tables = false;
};

// Prints the tables of what is trained, and writes them.
void report(const StudyDirectory& directory) {
  const StudyResults results = read_results(directory);
  if (results.metrics.empty())
    throw Error(ExitCode::kUsage, fmt::format("{}: nothing is trained yet, so there is no table", directory.path()));
  std::string text, markdown, latex;
  for (const auto& table : study_tables(directory.spec(), results)) {
    const char* between = text.empty() ? "" : "\n";
    text += between + as_text(table);
    markdown += between + as_markdown(table);
    latex += between + as_latex(table);
  }
  std::fputs(text.c_str(), stdout);
  write_file_atomically(directory.file("table.txt"), text);
  write_file_atomically(directory.file("table.md"), markdown);
  write_file_atomically(directory.file("table.tex"), latex);
  write_file_atomically(directory.file("table.csv"), table_csv(directory.spec(), results));
  write_file_atomically(directory.file("cells.csv"), cells_csv(directory));
  print_out("\n{}/table.{{txt,md,tex,csv}}, cells.csv\n", directory.path());
  std::fflush(stdout);
}

// Trains cell `index` with the ranks of a group, and reports how it went.
void train_cell(const StudyDirectory& directory, WorkGroup& group, const std::string& command_line, size_t index) {
  const Cell& cell = directory.spec().cells[index];
  const auto work = [&] {
    config::LoadedExperiment loaded;
    distributed::run_on_all_ranks(group.ranks(), [&] { loaded = directory.spec().experiment(cell); });
    training::TrainOptions options;
    options.run_directory = directory.run(cell);
    options.begin = training::Begin::kAuto;
    options.command_line = command_line;
    group.trainer().train(loaded, options, training::InProcessTrainer::Splits::kValidationAndTest, [&](const json&) {
      group.stop_if_asked(group.ask({{"op", "report"}}));
    });
  };
  const Ending ending = group.attempt(work, "");
  distributed::run_on_all_ranks(group.ranks(), [&] {
    if (ending.kind == Ending::kDone && group.leads()) directory.tidy(cell);
  });
  constexpr const char* states[] = {"done", "failed", "stopped", "elsewhere"};
  group.ask({{"op", "ended"}, {"cell", index}, {"state", states[ending.kind]}, {"reason", ending.reason}});
}

// Says before anything is trained what no table could be made without. Where a variant chooses its data, its runs say
// it.
void refuse_without_test(const StudySpec& spec) {
  data::Split split;
  std::string source;
  try {
    const config::Experiment base = spec.experiment(spec.cells[0]).experiment;
    const training::DataSource data = training::open_training_data(base);
    source = data.dataset->source();
    split = training::split_data(base, data, true);
  } catch (const Error&) {
    return;  // a run says it in its own words
  }
  if (split.test.empty())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: there is no test split, by which a study compares: mark samples in "
                            "/samples/split, or set data.split (docs/data.md)",
                            source));
}

std::string path_of(const StudyArguments& arguments, const StudySpec& spec) {
  return arguments.directory.empty() ? "runs/" + spec.study.name() : arguments.directory;
}

void run(const StudyArguments& arguments) {
  if (arguments.only_tables) {
    StudySpec spec = load_study(arguments.spec, arguments.set);
    const std::string path = path_of(arguments, spec);
    report(StudyDirectory(path, std::move(spec)));
    return;
  }
  run::catch_stop_signals();
  run_job([&](distributed::Communicator& world) {
    const bool is_main = world.rank() == 0;
    std::string command_line = fmt::format("muster study {}", shell_quoted(arguments.spec));
    if (!arguments.directory.empty()) command_line += " --study-dir " + shell_quoted(arguments.directory);
    for (const auto& text : arguments.set) command_line += " --set " + shell_quoted(text);
    std::optional<StudyDirectory> directory;
    distributed::run_on_all_ranks(world, [&] {
      StudySpec spec = load_study(arguments.spec, arguments.set);
      require_whole_groups(world.size(), spec.study.ranks_per_run(), "ranks_per_run");
      const std::string path = path_of(arguments, spec);
      if (is_main) refuse_without_test(spec);
      run::save_on_stop();
      directory.emplace(path, std::move(spec));
    });
    const StudySpec& spec = directory->spec();
    const config::Experiment base = spec.experiment(spec.cells[0]).experiment;
    training::require_same_job(
        world, spec_text(spec.study, "launcher/study/study.proto") + config::resolved_text(base) + command_line);
    ProgressLine progress;
    std::optional<Grid> grid;
    distributed::run_on_all_ranks(world, [&] {
      if (!is_main) return;
      const size_t variants = spec.variants.size() - 1;
      progress.note(fmt::format("{}: {}, {} seeds{}", directory->path(),
                                variants ? fmt::format("{} variants and the base", variants) : "the base alone",
                                spec.study.seeds(),
                                spec.study.folds() ? fmt::format(", {} folds", spec.study.folds()) : ""));
      grid.emplace(*directory, progress);
    });
    WorkGroup group(world, spec.study.ranks_per_run(), base.training(), is_main ? &*grid : nullptr);
    const auto finalize = [&](bool stopped) {
      progress.end();
      if (stopped) return;
      if (grid->failures().size() < spec.cells.size()) report(*directory);
      if (grid->failures().empty()) return;
      const auto& first = grid->failures()[0];
      throw Error(ExitCode::kInternal,
                  fmt::format("{} of {} runs failed. The same command tries them again. The first, {}: {}",
                              grid->failures().size(), spec.cells.size(), spec.cells[first.cell].folder, first.reason));
    };
    group.run([&](const json& task) { train_cell(*directory, group, command_line, task["cell"]); }, finalize,
              command_line);
  });
}

}  // namespace

void add_study_command(CLI::App& parent) {
  auto* command = parent.add_subcommand("study",
                                        "Train variants x seeds x folds and compare them: alone, or as each rank under "
                                        "mpirun or srun. Begins, or continues");
  auto arguments = std::make_shared<StudyArguments>();
  command->add_option("SPEC", arguments->spec, "Study file (.txtpb)")->required();
  command->add_option("--study-dir", arguments->directory, "Where it is kept (default: runs/<study's name>)");
  command
      ->add_option("--set", arguments->set,
                   "Change a value of base and variants alike, e.g. training.epochs=20; may be repeated")
      ->allow_extra_args(false);
  command->add_flag("--only-tables", arguments->only_tables,
                    "Train nothing: print the tables of what is trained so far");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace muster::launcher
