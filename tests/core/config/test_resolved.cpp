#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include <cmath>
#include <random>

#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "tests/core/config/with_folder.h"

namespace muster::config {
namespace {

using Resolved = WithFolder;
using google::protobuf::util::MessageDifferencer;
using testing::HasSubstr;

const char* const kTexts[] = {
    "data { path: 'x.h5' }\nmiar {}",
    "preset: 'foal_net_official'\ndata { path: 'x \\\"q\\\" \xC3\xA4.h5' modalities: ['audio', 'vision'] }",
    "preset: 'miar_recommended' data { synthetic { kind: REGRESSION noise: 0.30000000000000004 } }\nmiar { dim: 32 }",
    "foal_net { avel_weight: 0 } data { path: '/d' split { kind: LEAVE_ONE_GROUP_OUT test_group: 'Ses01' } }",
};

TEST_F(Resolved, TextReadsBackToTheSame) {
  for (const char* text : kTexts) {
    const Experiment e = load(text).experiment;
    EXPECT_TRUE(MessageDifferencer::Equals(parse_stored_experiment(resolved_text(e), "config.txtpb"), e)) << text;
    EXPECT_TRUE(MessageDifferencer::Equals(load(resolved_text(e)).experiment, e)) << text;
    EXPECT_EQ(resolved_text(e), resolved_text(load(text).experiment));
  }
}

TEST_F(Resolved, PresetIsKeptButNotAppliedAgain) {
  Experiment e = load(kTexts[2]).experiment;
  e.mutable_data()->set_standardize(false);  // the preset says true
  const Experiment back = parse_stored_experiment(resolved_text(e), "config.txtpb");
  EXPECT_EQ(back.preset(), "miar_recommended");
  EXPECT_FALSE(back.data().standardize());
}

TEST_F(Resolved, TextHasTheHeaderAndShortDoubles) {
  const std::string text = resolved_text(load(kTexts[2]).experiment);
  EXPECT_THAT(text, testing::StartsWith(
                        "# proto-file: core/config/experiment.proto\n# proto-message: muster.config.Experiment\n"
                        "# muster-results-version: 3\nname: "));
  EXPECT_THAT(text, HasSubstr("noise: 0.30000000000000004\n"));
  EXPECT_THAT(text, HasSubstr("dropout: 0.1\n"));
  EXPECT_THAT(text, HasSubstr("epsilon: 1e-8\n"));
}

// Against the plain Protobuf parser, which knows nothing of our printing.
TEST_F(Resolved, DoublesAreExactAndShort) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 2000; ++i) {
    const uint64_t bits = random();
    double value;
    static_assert(sizeof value == sizeof bits);
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isfinite(value)) continue;
    Experiment e;
    e.mutable_optimizer()->set_learning_rate(value);
    Experiment back;
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(resolved_text(e), &back));
    ASSERT_EQ(back.optimizer().learning_rate(), value) << resolved_text(e);
  }
}

std::string parse_problems(const std::string& text) {
  try {
    parse_stored_experiment(text, "config.txtpb");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadConfig);
    return error.what();
  }
  ADD_FAILURE() << "parses, though it must not";
  return "";
}

TEST_F(Resolved, IsCheckedLikeAnyFile) {
  Experiment e = load(kTexts[0]).experiment;
  e.mutable_optimizer()->set_beta1(2);
  EXPECT_THAT(parse_problems(resolved_text(e)),
              HasSubstr("config.txtpb:38: optimizer.beta1 must be at least 0 and less than 1, not 2"));
  EXPECT_THAT(parse_problems("sed: 3"), HasSubstr("config.txtpb:1: unknown field sed; did you mean seed?"));
  EXPECT_THAT(parse_problems(""), HasSubstr("config.txtpb is empty"));
  EXPECT_THAT(parse_problems("# proto-message: muster.x.Y\n"), HasSubstr("muster.x.Y"));
}

TEST_F(Resolved, DocumentedTextIsItselfAnExperimentFile) {
  for (const char* text : kTexts) {
    const Experiment e = load(text).experiment;
    const LoadedExperiment again = load(documented_text(e));
    EXPECT_TRUE(MessageDifferencer::Equals(again.experiment, e)) << text;
    EXPECT_TRUE(MessageDifferencer::Equals(parse_stored_experiment(documented_text(e), "x"), e)) << text;
    EXPECT_THAT(again.notes, testing::IsEmpty());
  }
}

TEST_F(Resolved, DocumentedTextExplainsFieldsOptionsAndMetrics) {
  const std::string text = documented_text(load(kTexts[0]).experiment);
  EXPECT_THAT(
      text,
      HasSubstr(
          "  # Samples per optimizer step over ALL ranks: the number of ranks never changes it.\n  batch_size: 32\n"));
  EXPECT_THAT(text,
              HasSubstr("  #   FP32\n  #   FP64\n  #   BF16: Weights and optimizer state in fp32, matrix products in "
                        "bfloat16 (PyTorch's autocast rules).\n  precision: FP32\n"));
  EXPECT_THAT(text, HasSubstr("\n# foal_net is not set.\n"));
  EXPECT_THAT(text, HasSubstr("    # test_group is not set.\n"));
  EXPECT_THAT(text, testing::EndsWith(
                        "# Metrics that evaluation.select_by may name:\n"
                        "#   regression:     Has0_acc_2, Has0_F1_score, Non0_acc_2, Non0_F1_score, Mult_acc_5, "
                        "Mult_acc_7, MAE, Corr, CCC, SIMS_acc_2, SIMS_acc_2_weak, SIMS_acc_3, SIMS_acc_5, "
                        "SIMS_F1_score, SIMS_MAE, SIMS_Corr, loss\n"
                        "#   classification: WA, UA, macro_recall, weighted_F1, loss\n"
                        "#   multilabel:     mean_weighted_F1, mean_WA, macro_F1, micro_F1, subset_accuracy, loss\n"));
  EXPECT_THAT(text, testing::Not(HasSubstr("UNSPECIFIED")));
}

}  // namespace
}  // namespace muster::config
