#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>

#include "core/config/fields.h"
#include "core/config/load.h"
#include "tests/core/config/with_folder.h"

namespace muster::config {
namespace {

using Load = WithFolder;
using google::protobuf::util::MessageDifferencer;
using testing::ElementsAre;

TEST_F(Load, FillsInDefaultsForTheModelThatIsPresentOnly) {
  const Experiment e = load("data { path: 'x.h5' }\nmiar {}").experiment;
  EXPECT_EQ(e.training().batch_size(), 32u);
  EXPECT_EQ(e.miar().dim(), 128u);
  EXPECT_EQ(e.optimizer().epsilon(), 1e-8);
  EXPECT_FALSE(e.has_foal_net());
  EXPECT_FALSE(e.data().has_synthetic());
  EXPECT_FALSE(e.has_preset());
}

TEST_F(Load, FileBeatsPresetBeatsDefaults) {
  const LoadedExperiment loaded = load("preset: 'miar_recommended'\ndata { path: 'x' }\nmiar { ffn_dim: 100 }\n");
  EXPECT_EQ(loaded.experiment.miar().ffn_dim(), 100u);  // file
  EXPECT_EQ(loaded.experiment.miar().dim(), 64u);       // preset
  EXPECT_TRUE(loaded.experiment.data().standardize());  // preset
  EXPECT_EQ(loaded.experiment.miar().layers(), 2u);     // default
  EXPECT_EQ(loaded.experiment.preset(), "miar_recommended");
}

// No preset has a list today; the rule is part of the contract all the same.
TEST(MergeOver, ReplacesListsAndKeepsWhatIsNotGiven) {
  Experiment base, over;
  base.mutable_data()->add_modalities("text");
  base.mutable_data()->add_modalities("audio");
  base.mutable_data()->set_target("happy");
  over.mutable_data()->add_modalities("vision");
  merge_over(base, over);
  EXPECT_THAT(base.data().modalities(), ElementsAre("vision"));
  EXPECT_EQ(base.data().target(), "happy");
  merge_over(base, Experiment());
  EXPECT_THAT(base.data().modalities(), ElementsAre("vision"));
}

TEST_F(Load, PresetAloneBringsItsModel) {
  const Experiment e = load("preset: 'foal_net_official' data { path: 'x' }").experiment;
  ASSERT_TRUE(e.has_foal_net());
  EXPECT_FALSE(e.has_miar());
  EXPECT_EQ(e.foal_net().temperature_mode(), FoalNet::RAW_DIVISOR);
  EXPECT_EQ(e.foal_net().layers(), 2u);
  EXPECT_EQ(e.training().batch_size(), 16u);
}

TEST_F(Load, EveryPresetLoads) {
  EXPECT_THAT(preset_names(), ElementsAre("foal_net_official", "foal_net_recommended", "miar_recommended"));
  for (const std::string& name : preset_names()) {
    EXPECT_THAT(preset_text(name), testing::HasSubstr("proto-message: muster.config.Experiment"));
    EXPECT_NO_THROW(load("preset: '" + name + "' data { path: 'x' }")) << name;
  }
}

TEST_F(Load, UnknownPresetTextListsTheNames) {
  try {
    preset_text("miar");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadConfig);
    EXPECT_THAT(error.what(), testing::HasSubstr("foal_net_official, foal_net_recommended or miar_recommended"));
  }
}

TEST_F(Load, ZeroAndFalseAndEmptyAreNotTheSameAsNotGiven) {
  const Experiment given = load(
                               "preset: 'miar_recommended' data { path: 'x' standardize: false }\n"
                               "optimizer { learning_rate: 0 weight_decay: 0 } training { epochs: 0 max_steps: 5 }")
                               .experiment;
  EXPECT_FALSE(given.data().standardize());
  EXPECT_EQ(given.optimizer().learning_rate(), 0);
  EXPECT_EQ(given.optimizer().weight_decay(), 0);
  EXPECT_EQ(given.training().epochs(), 0u);
  const Experiment not_given =
      load("preset: 'miar_recommended' data { path: 'x' } training { max_steps: 5 }").experiment;
  EXPECT_TRUE(not_given.data().standardize());
  EXPECT_EQ(not_given.optimizer().learning_rate(), 5e-4);
  EXPECT_EQ(not_given.optimizer().weight_decay(), 0.01);
  EXPECT_EQ(not_given.training().epochs(), 20u);
}

TEST_F(Load, SyntheticDataHasDefaultsWhenAskedFor) {
  const Data data = load("data { synthetic { kind: CLASSIFICATION noise: 0 } }\nfoal_net {}").experiment.data();
  EXPECT_EQ(data.synthetic().samples(), 600u);
  EXPECT_EQ(data.synthetic().noise(), 0);
  EXPECT_EQ(data.synthetic().seed(), 1u);
  EXPECT_FALSE(data.has_path());
}

TEST_F(Load, NameIsTheFilesUnlessGiven) {
  const std::string text = "data { path: 'x' }\nmiar {}\n";
  EXPECT_EQ(load_experiment(write(text, "mosi.v2.txtpb"), {}).experiment.name(), "mosi.v2");
  EXPECT_EQ(load(text + "name: 'own'").experiment.name(), "own");
  EXPECT_EQ(load(text + "name: 'own'", {"name="}).experiment.name(), "e");
}

TEST_F(Load, DataPathIsRelativeToTheFileOrForOverridesToTheCurrentFolder) {
  const std::string text = "data { path: '../d/x.h5' }\nmiar {}\n";
  EXPECT_EQ(load(text).experiment.data().path(), (folder_.parent_path() / "d/x.h5").string());
  EXPECT_EQ(load(text, {"data.path=d/y.h5"}).experiment.data().path(),
            (std::filesystem::current_path() / "d/y.h5").string());
  EXPECT_EQ(load(text, {"data.path=/z.h5"}).experiment.data().path(), "/z.h5");
  const std::filesystem::path before = std::filesystem::current_path();
  write(text);
  std::filesystem::current_path(folder_);
  const std::string relative = load_experiment("e.txtpb", {}).experiment.data().path();
  std::filesystem::current_path(before);
  EXPECT_EQ(relative, (folder_.parent_path() / "d/x.h5").string());
}

TEST_F(Load, TakesEverythingThatTextFormatAllows) {
  const LoadedExperiment loaded = load(
      "\xEF\xBB\xBF# comment with umlaut \xC3\xA4\r\ndata: { path: \"a\" 'b' modalities: 'text', modalities: "
      "\"audio\"; }\r\n"
      "miar < dropout: 0.25f heads: 0x2 >\r\nseed: 18446744073709551615\r\n");
  EXPECT_EQ(loaded.experiment.data().path(), (folder_ / "ab").string());
  EXPECT_THAT(loaded.experiment.data().modalities(), ElementsAre("text", "audio"));
  EXPECT_EQ(loaded.experiment.miar().heads(), 2u);
  EXPECT_EQ(loaded.experiment.miar().dropout(), 0.25);
  EXPECT_EQ(loaded.experiment.seed(), 18446744073709551615u);
}

TEST_F(Load, SaysWhereEachValueCameFrom) {
  const LoadedExperiment loaded = load(
      "preset: 'miar_recommended'\ndata {\n path: 'x'\n modalities: ['text',\n 'audio'] }\n", {"training.epochs=3"});
  const auto place = [&](const std::string& path) { return without_folder(where(loaded, path)); };
  EXPECT_EQ(place("data.path"), "e.txtpb:3");
  EXPECT_EQ(place("data.modalities[0]"), "e.txtpb:4");
  EXPECT_EQ(place("data.modalities[1]"), "e.txtpb:5");
  EXPECT_EQ(place("data.modalities"), "e.txtpb:4");
  EXPECT_EQ(place("data"), "e.txtpb:2");
  EXPECT_EQ(place("training.epochs"), "--set training.epochs=3");
  EXPECT_EQ(place("miar.dim"), "preset miar_recommended");
  EXPECT_EQ(place("miar.heads"), "default");
  EXPECT_EQ(without_folder(loaded.source_path), "e.txtpb");
}

TEST_F(Load, NotesWhatHasNoEffect) {
  const std::string text =
      "data { path: 'x' split { fold: 2 } }\nmiar {}\noptimizer { step_factor: 0.1\n final_lr_ratio: 0.1 }";
  std::vector<std::string> notes = load(text).notes;
  for (std::string& note : notes) note = without_folder(note);
  EXPECT_THAT(notes, ElementsAre("e.txtpb:1: data.split.fold = 2 has no effect: it is used only with data.split.kind: "
                                 "LEAVE_ONE_GROUP_OUT or K_FOLD",
                                 "e.txtpb:4: optimizer.final_lr_ratio = 0.1 has no effect: it is used only with "
                                 "optimizer.schedule: COSINE"));
  EXPECT_THAT(load(text, {"optimizer.schedule=COSINE", "data.split.kind=K_FOLD"}).notes, testing::IsEmpty());
}

TEST_F(Load, NotesWhatHasNoEffectOnEncoders) {
  const auto notes_of = [&](const std::string& encoders) {
    std::vector<std::string> notes = load("data { path: 'x' }\nlate_fusion {}\n" + encoders).notes;
    for (std::string& note : notes) note = without_folder(note);
    return notes;
  };
  const std::string audio = "encoders { modality: 'audio' path: 'a' ", text = "encoders { modality: 'text' path: 't' ";
  EXPECT_THAT(notes_of(audio + "train: ALL top_layers: 2 learning_rate_scale: 0.1 }\n" + text +
                       "train: FROZEN top_layers: 3 learning_rate_scale: 0.1\n layer_decay: 0.9 }"),
              ElementsAre("e.txtpb:3: encoders[0].top_layers = 2 has no effect: it is used only with "
                          "encoders[0].train: TRANSFORMER, and here it is ALL, which trains all layers",
                          "e.txtpb:4: encoders[1].top_layers = 3 has no effect: it is used only with "
                          "encoders[1].train: TRANSFORMER, and here it is FROZEN, which trains none",
                          "e.txtpb:4: encoders[1].learning_rate_scale = 0.1 has no effect: it is used only with "
                          "encoders[1].train: TRANSFORMER or ALL, and here it is FROZEN",
                          "e.txtpb:5: encoders[1].layer_decay = 0.9 has no effect: it is used only with "
                          "encoders[1].train: TRANSFORMER or ALL, and here it is FROZEN"));
  // Defaults that are spelt out, as a run's config.txtpb has them.
  EXPECT_THAT(notes_of(audio + "train: ALL top_layers: 0 }\n" + text +
                       "train: FROZEN top_layers: 0 learning_rate_scale: 1 layer_decay: 1 }"),
              testing::IsEmpty());
  EXPECT_THAT(notes_of(audio + "train: TRANSFORMER top_layers: 2 learning_rate_scale: 0.1 layer_decay: 0.9 }"),
              testing::IsEmpty());
}

TEST_F(Load, LaterErrorsGetThePlaceOfEachFieldThatTheyName) {
  const auto loaded = load("data { path: 'x' }\nfoal_net {\nheads: 3 }", {"seed=4"});
  const auto placed = [&](ExitCode code, const std::string& text) -> std::string {
    try {
      with_places(loaded, [&] { throw Error(code, text); });
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      return without_folder(error.what());
    }
    return "";
  };
  EXPECT_EQ(placed(ExitCode::kBadConfig, "foal_net.heads: too many"), "e.txtpb:3: foal_net.heads: too many");
  EXPECT_EQ(placed(ExitCode::kBadConfig, "x: 3 problems:\n  seed: odd\n  foal_net.layers: few\n  foal_net.heads: 3"),
            "x: 3 problems:\n  --set seed=4: seed: odd\n  foal_net.layers: few\n  e.txtpb:3: foal_net.heads: 3");
  EXPECT_EQ(placed(ExitCode::kBadData, "seed: odd"), "seed: odd");
}

TEST_F(Load, PresetGivenOnTheCommandLineReplacesTheFiles) {
  const std::string text = "preset: 'foal_net_official'\ndata { path: 'x' }";
  EXPECT_EQ(load(text, {"preset=foal_net_recommended"}).experiment.foal_net().adapter_dim(), 128u);
  EXPECT_TRUE(load(text, {"preset=miar_recommended"}).experiment.has_miar());
  EXPECT_TRUE(MessageDifferencer::Equals(load("foal_net {} data { path: 'x' }").experiment,
                                         load(text, {"preset=", "foal_net={}"}).experiment));
}

}  // namespace
}  // namespace muster::config
