#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>

#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "tests/core/config/with_folder.h"

namespace muster::config {
namespace {

Experiment small() {
  return parse_stored_experiment(
      "# proto-file: core/config/experiment.proto\n# proto-message: muster.config.Experiment\n"
      "name: 'x' data { synthetic { kind: REGRESSION } modalities: ['text', 'audio'] } miar {}",
      "x");
}

TEST(Compare, NamesEveryValueThatDiffers) {
  const Experiment before = small();
  EXPECT_TRUE(differences(before, before).empty());
  Experiment after = before;
  after.set_seed(7);
  after.mutable_optimizer()->set_learning_rate(0.5);
  after.mutable_data()->add_modalities("vision");
  after.mutable_training()->set_precision(Training::BF16);
  std::vector<std::string> found;
  for (const auto& d : differences(before, after)) found.push_back(d.path + ": " + d.before + " -> " + d.after);
  EXPECT_EQ(found, (std::vector<std::string>{
                       "seed: 1 -> 7", "data.modalities: [\"text\", \"audio\"] -> [\"text\", \"audio\", \"vision\"]",
                       "optimizer.learning_rate: 1e-4 -> 0.5", "training.precision: FP32 -> BF16"}));
}

TEST(Compare, ABlockThatOnlyOneHasIsOneDifference) {
  const Experiment before = small();
  Experiment after = before;
  after.mutable_data()->clear_synthetic();
  after.mutable_data()->set_path("/d.h5");
  after.clear_miar();
  std::vector<std::string> found;
  for (const auto& d : differences(before, after)) found.push_back(d.path + ": " + d.before + " -> " + d.after);
  EXPECT_EQ(found, (std::vector<std::string>{"data.path: (not set) -> \"/d.h5\"", "data.synthetic: (set) -> (not set)",
                                             "miar: (set) -> (not set)"}));
}

// A field of the schema that nobody has thought about must not be allowed to change silently.
TEST(Compare, WhatMayChange) {
  Experiment experiment = small();
  for (const char* path : {"training.epochs", "training.max_steps", "checkpoints.keep_last", "deadlines.step",
                           "training.microbatches", "data.path"})
    EXPECT_TRUE(may_change_in_a_run(path, experiment)) << path;
  for (const char* path : {"seed", "training.batch_size", "training.precision", "optimizer.learning_rate", "miar.dim",
                           "data.standardize", "checkpointsx"})
    EXPECT_FALSE(may_change_in_a_run(path, experiment)) << path;
  experiment.mutable_training()->set_reproducible(true);
  EXPECT_FALSE(may_change_in_a_run("training.microbatches", experiment));
}

using Stored = WithFolder;
using testing::HasSubstr;

// A line out of a stored text, with the whole line break.
std::string without(std::string text, const std::string& line) {
  const size_t at = text.find(line + "\n");
  EXPECT_NE(at, std::string::npos) << line;
  return text.erase(at, line.size() + 1);
}

std::string with_version(const std::string& text, const std::string& version) {
  const std::string line = std::string("# ") + kResultsVersionKey + " " + std::to_string(kResultsVersion) + "\n";
  std::string changed = text;
  return changed.replace(changed.find(line), line.size(),
                         version.empty() ? "" : std::string("# ") + kResultsVersionKey + " " + version + "\n");
}

TEST_F(Stored, AMissingFieldThatNeverChangedHasItsDefault) {
  EXPECT_EQ(small().checkpoints().keep_last(), 2u);
  EXPECT_EQ(small().training().batch_size(), 32u);
}

// As if miar.dropout were a field of results version 3 whose default became 0.1 in version 5.
TEST_F(Stored, AMissingFieldHasTheValueThatItHadThen) {
  const std::vector<EarlierValue> earlier{{5, "miar.dropout", "0.25"},
                                          {3, "miar.dropout", "0"},
                                          {3, "training.sampling", "SEQUENTIAL"},
                                          {9, "foal_net.layers", "7"},
                                          {2, "seed", "99"}};
  std::string text = resolved_text(small());
  text = without(without(without(text, "  dropout: 0.1"), "  sampling: SHUFFLE"), "seed: 1");
  const auto read = [&](const std::string& version) {
    return parse_stored_experiment(with_version(text, version), "config.txtpb", earlier);
  };
  for (const char* first : {"", "1"}) {  // a file without the line is of version 1
    EXPECT_EQ(read(first).miar().dropout(), 0);
    EXPECT_EQ(read(first).training().sampling(), Training::SEQUENTIAL);
    EXPECT_EQ(read(first).seed(), 99u);
  }
  EXPECT_EQ(read("2").seed(), 1u);
  EXPECT_EQ(read("2").miar().dropout(), 0);
  EXPECT_EQ(read("3").miar().dropout(), 0.25);
  EXPECT_EQ(read("4").miar().dropout(), 0.25);
  EXPECT_EQ(read("3").training().sampling(), Training::SHUFFLE);
  EXPECT_EQ(read("5").miar().dropout(), 0.1);
  EXPECT_FALSE(read("1").has_foal_net());
  // What the file says always counts.
  text = resolved_text(small());
  EXPECT_EQ(read("1").miar().dropout(), 0.1);
  EXPECT_EQ(read("1").seed(), 1u);
}

TEST_F(Stored, TheTableNamesFieldsAndValuesThatExist) {
  for (const char* model : {"miar {}", "foal_net {}"}) {
    Experiment experiment =
        parse_stored_experiment(std::string("data { synthetic { kind: CLASSIFICATION } }") + model, "x");
    EXPECT_NO_THROW(defaults_of_version(experiment, 1));
  }
  for (const auto& entry : earlier_values()) EXPECT_LE(entry.since, kResultsVersion) << entry.path;
  EXPECT_THAT(
      [] {
        defaults_of_version(small(), 1, {{2, "miar.depth", "3"}});
      },
      testing::ThrowsMessage<Error>(HasSubstr("unknown field miar.depth")));
}

TEST_F(Stored, WhatOnlyTheProgramHasChangedIsContinuedWith) {
  Experiment asked = small(), stored = small();
  asked.mutable_data()->set_standardize_in_float32(false);
  stored.mutable_data()->set_standardize_in_float32(true);
  stored.set_seed(8);  // the user's own change
  const auto choices = earlier_choices(stored, asked);
  ASSERT_EQ(choices.size(), 1u);
  EXPECT_EQ(choices[0].path + "=" + choices[0].before, "data.standardize_in_float32=true");
  // Asked for, and not the default: the user's own change too.
  asked.mutable_data()->set_standardize_in_float32(true);
  stored.mutable_data()->set_standardize_in_float32(false);
  EXPECT_TRUE(earlier_choices(stored, asked).empty());
}

TEST_F(Stored, AnUnknownFieldIsRefusedByName) {
  std::string text = with_version(resolved_text(small()), "7");
  text.insert(text.find("  dropout: 0.1"), "  gate_width: 3\n");
  EXPECT_THAT([&] { parse_stored_experiment(text, "config.txtpb"); },
              testing::ThrowsMessage<Error>(
                  testing::AllOf(HasSubstr("unknown field miar.gate_width"),
                                 HasSubstr("If a newer muster wrote this file, only that one can read it."))));
}

TEST_F(Stored, AVersionMustBeANumber) {
  for (const char* version : {"new", "0", "1x", "99999999999"})
    EXPECT_THAT([&] { parse_stored_experiment(with_version(resolved_text(small()), version), "config.txtpb"); },
                testing::ThrowsMessage<Error>(HasSubstr(std::string("config.txtpb:3: ") + kResultsVersionKey)));
}

TEST_F(Stored, FilesOfUsersAndOfMusterAreToldApart) {
  const std::string text = "preset: 'miar_recommended' data { synthetic { kind: REGRESSION } } miar {}";
  const std::string mine = write(text, "config.txtpb"), written = write(resolved_text(small()), "copy.txtpb");
  EXPECT_FALSE(is_stored_experiment(mine));
  EXPECT_TRUE(load_any_experiment(mine).experiment.data().standardize());  // by the preset
  EXPECT_TRUE(is_stored_experiment(written));
  write("{}", "result.json");  // so this is the directory of a run, perhaps of a muster that wrote no version
  EXPECT_TRUE(is_stored_experiment(mine));
  EXPECT_FALSE(load_any_experiment(mine).experiment.data().standardize());
}

TEST_F(Stored, AMissingFileIsAnErrorOfTheDisk) {
  try {
    load_stored_experiment((folder_ / "none" / "config.txtpb").string());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kIo);
    EXPECT_THAT(error.what(), HasSubstr("none/config.txtpb: cannot be read"));
  }
}

}  // namespace
}  // namespace muster::config
