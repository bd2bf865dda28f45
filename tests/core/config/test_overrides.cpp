#include <gmock/gmock.h>

#include "tests/core/config/with_folder.h"

namespace muster::config {
namespace {

using Overrides = WithFolder;
using testing::ElementsAre;

const char kText[] = "data { path: '/x.h5' modalities: ['text', 'audio'] }\nmiar { dim: 32 }\ntraining { epochs: 9 }\n";

TEST_F(Overrides, AreTypedByTheSchema) {
  const Experiment e = load(kText, {"training.epochs=3", "optimizer.learning_rate=5e-5", "data.standardize=1",
                                    "training.drop_last=true", "data.split.kind=K_FOLD", "data.split.fold=4",
                                    "name=a b", "evaluation.select_by=\"MAE\"", "data.target='happy'", " seed = 7 "})
                           .experiment;
  EXPECT_EQ(e.training().epochs(), 3u);
  EXPECT_EQ(e.optimizer().learning_rate(), 5e-5);
  EXPECT_TRUE(e.data().standardize());
  EXPECT_TRUE(e.training().drop_last());
  EXPECT_EQ(e.data().split().kind(), Split::K_FOLD);
  EXPECT_EQ(e.data().split().fold(), 4u);
  EXPECT_EQ(e.name(), "a b");
  EXPECT_EQ(e.evaluation().select_by(), "MAE");
  EXPECT_EQ(e.data().target(), "happy");
  EXPECT_EQ(e.seed(), 7u);
  EXPECT_FALSE(load(kText, {"data.standardize=0"}).experiment.data().standardize());
}

TEST_F(Overrides, TheLastOneWins) { EXPECT_EQ(load(kText, {"seed=1", "seed=2"}).experiment.seed(), 2u); }

TEST_F(Overrides, ListsReplaceTheFiles) {
  EXPECT_THAT(load(kText, {"data.modalities=audio,vision"}).experiment.data().modalities(),
              ElementsAre("audio", "vision"));
  EXPECT_THAT(load(kText, {"data.modalities=[\"a,b\", 'c', d]"}).experiment.data().modalities(),
              ElementsAre("a,b", "c", "d"));
  EXPECT_THAT(load(kText, {"data.modalities="}).experiment.data().modalities(), ElementsAre());
}

TEST_F(Overrides, ReplaceWhereTheValueCameFrom) {
  const LoadedExperiment loaded = load("data { path: 'x' modalities: ['a', 'b', 'c'] }\nmiar { dim: 32 }\n",
                                       {"data.modalities=d,e", "miar=", "foal_net={}", "foal_net.heads=2"});
  EXPECT_EQ(where(loaded, "data.modalities[1]"), "--set data.modalities=d,e");
  EXPECT_EQ(loaded.origins.count("data.modalities[2]"), 0u);
  EXPECT_EQ(where(loaded, "miar.dim"), "default");
  EXPECT_EQ(where(loaded, "foal_net"), "--set foal_net={}");
  EXPECT_EQ(where(loaded, "foal_net.heads"), "--set foal_net.heads=2");
}

TEST_F(Overrides, AreJudgedEvenWhereTheFileHoldsNoValue) {
  EXPECT_EQ(problems("data { path: 'x' }\nmiar { dim: 'x' heads: 1 }\n", {"miar.dim=63"}),
            "e.txtpb: 2 problems:\n"
            "  e.txtpb:2: miar.dim wants a whole number from 0 to 4294967295, not 'x'\n"
            "  --set miar.dim=63: miar.dim must be even (positions are pairs of sine and cosine), not 63");
}

TEST_F(Overrides, CanTakeABlockAwayOrReplaceIt) {
  const Experiment other =
      load(kText, {"miar=", "foal_net.layers=1",
                   "data.path=", "data.modalities=", "data.synthetic={kind: CLASSIFICATION samples: 40}"})
          .experiment;
  EXPECT_FALSE(other.has_miar());
  EXPECT_EQ(other.foal_net().layers(), 1u);
  EXPECT_FALSE(other.data().has_path());
  EXPECT_EQ(other.data().synthetic().samples(), 40u);
  EXPECT_EQ(other.data().synthetic().noise(), 1);
  EXPECT_EQ(load(kText, {"miar={heads: 2}"}).experiment.miar().dim(), 128u);
}

TEST_F(Overrides, OfTwoModelsTheOneThatIsLeftKeepsItsValues) {
  const std::string text = "data { path: 'x' }\nmiar { heads: 2 }";
  EXPECT_EQ(load(text, {"foal_net.layers=1", "foal_net="}).experiment.miar().heads(), 2u);
  EXPECT_EQ(load(text, {"foal_net.layers=1", "miar="}).experiment.foal_net().layers(), 1u);
  EXPECT_EQ(load(text, {"miar=", "miar.layers=3"}).experiment.miar().heads(), 4u);
}

TEST_F(Overrides, CanMendTheFile) {
  EXPECT_EQ(load("data { path: 'x' }\nmiar { heads: 3 }", {"miar.dim=96"}).experiment.miar().heads(), 3u);
}

TEST_F(Overrides, ProblemsNameTheOverride) {
  const auto message = [&](const std::string& text) {
    const std::string all = problems(kText, {text}), start = "e.txtpb: 1 problem:\n  --set " + text + ": ";
    EXPECT_THAT(all, testing::StartsWith(start));
    return all.size() > start.size() ? all.substr(start.size()) : all;
  };
  EXPECT_EQ(message("training.epoks=3"), "unknown field training.epoks; did you mean training.epochs?");
  EXPECT_EQ(message("learning_rate=3"), "unknown field learning_rate; did you mean optimizer.learning_rate?");
  EXPECT_EQ(message("batch_size=3"),
            "unknown field batch_size; did you mean training.batch_size or evaluation.batch_size?");
  EXPECT_EQ(message("training.epochs.x=3"), "training.epochs is a single value and has no field x");
  EXPECT_EQ(message("training.epochs=many"), "training.epochs wants a whole number from 0 to 4294967295, not many");
  EXPECT_EQ(message("training.epochs=3 seed: 4"),
            "training.epochs wants a whole number from 0 to 4294967295, not 3 seed: 4");
  EXPECT_EQ(message("training.epochs="),
            "training.epochs wants a whole number from 0 to 4294967295, and nothing stands after \"=\"");
  EXPECT_EQ(message("training.epochs"), "expected path=value, for example --set training.epochs=3");
  EXPECT_EQ(message("data.standardize=yes"), "data.standardize wants true or false, not yes");
  EXPECT_EQ(message("data.split.kind=kfold"),
            "data.split.kind has no value kfold; did you mean K_FOLD? Valid: FIXED, LEAVE_ONE_GROUP_OUT, K_FOLD");
  EXPECT_EQ(message("training.batch_size=0"), "training.batch_size must be from 1 to 16777216, not 0");
  EXPECT_EQ(message("training=3"),
            "training is a block; set a field in it, as training.epochs=..., or write training={...}");
  EXPECT_EQ(message("training={epoch: 3}"), "unknown field training.epoch; did you mean training.epochs?");
  EXPECT_EQ(message("foal_net.layers=1"),
            "foal_net (--set foal_net.layers=1) and miar (e.txtpb:2) are both given; keep one of them");
  EXPECT_EQ(message("data.modalities=a,,b"), "data.modalities holds \"\", which cannot be the name of a modality");
  EXPECT_EQ(
      message("preset=foal_net_official"),
      "the preset foal_net_official is for foal_net, but the experiment has miar (e.txtpb:2); take away one of them");
  message("=3");
  message("training..epochs=3");
  message("miar={} seed: 3 }{");
}

TEST_F(Overrides, AreReportedWithWhatIsWrongInTheFile) {
  EXPECT_EQ(problems("data { path: 'x' }\nmiar { dim: 63 heads: 1 }\n", {"seed=-1", "training.threads=a"}),
            "e.txtpb: 3 problems:\n"
            "  e.txtpb:2: miar.dim must be even (positions are pairs of sine and cosine), not 63\n"
            "  --set seed=-1: seed wants a whole number from 0 to 18446744073709551615, not -1\n"
            "  --set training.threads=a: training.threads wants a whole number from 0 to 4294967295, not a");
}

}  // namespace
}  // namespace muster::config
