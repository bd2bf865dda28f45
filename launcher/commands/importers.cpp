#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/print.h"
#include "base/text.h"
#include "launcher/commands/commands.h"
#include "launcher/work/python.h"

namespace muster::launcher {
namespace {

// The programs in importers/: each reads its own command line, --help included.
struct Importer {
  const char *name, *script, *description;
};

constexpr Importer kFormats[] = {
    {"arrays", "arrays", "a CSV manifest and one .npy, .wav, .flac or .txt file per sample and modality"},
    {"mmsa", "mmsa", "MMSA's pickles: MOSI, MOSEI, SIMS"},
    {"cmu-sdk", "cmu_sdk", "computational sequences (.csd) of the CMU-MultimodalSDK"},
    {"merbench", "merbench", "MERBench's feature folders and label.npz"},
    {"iemocap", "iemocap", "the folder of the IEMOCAP corpus"},
};

constexpr Importer kTools[] = {
    {"merge", "merge", "Join modalities of two dataset files by id"},
    {"subset", "subset", "Write some of a file's samples or modalities"},
    {"split", "split", "Write a fixed split"},
    {"export", "export", "Write a dataset file as .npy files and a CSV, or as MMSA's pickle"},
};

CLI::App* add_importer(CLI::App& data, const char* name, const char* description) {
  CLI::App* command = data.add_subcommand(name, description);
  command->set_help_flag();
  command->prefix_command();
  return command;
}

std::string formats_text() {
  std::string text = "usage: muster data import FORMAT ... -o OUT.h5\n\nMakes a dataset file. FORMAT is one of\n";
  for (const Importer& format : kFormats) text += fmt::format("  {:10} {}\n", format.name, format.description);
  return text + "`muster data import FORMAT --help` shows its options.\n";
}

void import_data(std::vector<std::string> arguments) {
  const std::string name = arguments.empty() ? "" : arguments[0];
  if (name == "--help" || name == "-h") {
    print_out("{}", formats_text());
    return;
  }
  for (const Importer& format : kFormats) {
    if (name != format.name) continue;
    arguments.erase(arguments.begin());
    become_importer(format.script, "muster data import " + name, arguments);
  }
  throw Error(ExitCode::kUsage,
              fmt::format("{}\n{}", name.empty() ? "the format is missing" : "there is no format " + in_quotes(name),
                          formats_text()));
}

void add_html(CLI::App& inspect) {
  const auto path = std::make_shared<std::string>();
  inspect.add_option("--html", *path, "Write a page with lengths, labels, ranges and suspicious things instead")
      ->excludes(inspect.get_option("--json"));
  inspect.parse_complete_callback([&inspect, path] {
    if (path->empty()) return;
    become_importer("inspect_html", "muster data inspect", {inspect["FILE"]->as<std::string>(), "--html", *path});
  });
}

}  // namespace

void add_importer_commands(CLI::App& parent) {
  CLI::App& data = *parent.get_subcommand("data");
  add_html(*data.get_subcommand("inspect"));
  CLI::App* command = add_importer(data, "import", "Make a dataset file of another format's files");
  command->callback([command] { import_data(command->remaining()); });
  for (const Importer& tool : kTools) {
    CLI::App* of_tool = add_importer(data, tool.name, tool.description);
    of_tool->callback([of_tool, tool] {
      become_importer(tool.script, fmt::format("muster data {}", tool.name), of_tool->remaining());
    });
  }
}

}  // namespace muster::launcher
