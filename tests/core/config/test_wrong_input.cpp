#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tests/core/config/with_folder.h"

namespace muster::config {
namespace {

struct Wrong {
  std::string name;
  std::string text;
  std::string message;  // the whole message after "e.txtpb: 1 problem:\n  "
};

// Each has one mistake; the message must name its line and nothing else.
const Wrong kWrong[] = {
    {"unknown_field", "data { path: 'x' }\nmiar {}\ntraining {\n  epoks: 3\n}\n",
     "e.txtpb:4: unknown field training.epoks; did you mean training.epochs?"},
    {"field_of_another_block", "data { path: 'x' }\nmiar {}\noptimizer {\n\n batch_size: 3 }\n",
     "e.txtpb:5: unknown field optimizer.batch_size; did you mean training.batch_size or evaluation.batch_size?"},
    {"abbreviation", "data { path: 'x' }\nmiar {}\noptimizer { lr: 1e-3 }\n",
     "e.txtpb:3: unknown field optimizer.lr; did you mean optimizer.learning_rate?"},
    {"unknown_block", "data { path: 'x' }\nmiar {}\nzzz {\n a: 1 b { c: 2 }\n}\n",
     "e.txtpb:3: unknown field zzz; an experiment has name, preset, seed, data, foal_net, miar, late_fusion, "
     "optimizer, training, "
     "evaluation, checkpoints, deadlines and encoders"},
    {"text_for_number", "data { path: 'x' }\nmiar { dim: 'wide' }\n",
     "e.txtpb:2: miar.dim wants a whole number from 0 to 4294967295, not 'wide'"},
    {"negative_count", "data { path: 'x' }\nmiar {\n\n\ndim: -4 }\n",
     "e.txtpb:5: miar.dim wants a whole number from 0 to 4294967295, not -4"},
    {"fraction_for_count", "data { path: 'x' }\nmiar {}\ntraining { epochs: 2.5 }",
     "e.txtpb:3: training.epochs wants a whole number from 0 to 4294967295, not 2.5"},
    {"too_large", "data { path: 'x' }\nmiar {}\ntraining { epochs: 4294967296 }",
     "e.txtpb:3: training.epochs wants a whole number from 0 to 4294967295, not 4294967296"},
    {"octal", "data { path: 'x' }\nmiar {}\ntraining { epochs: 010 }",
     "e.txtpb:3: training.epochs wants a whole number from 0 to 4294967295; 010 starts with 0, which text format reads "
     "as "
     "octal"},
    {"word_for_number", "data { path: 'x' }\nmiar { dropout: low }\n",
     "e.txtpb:2: miar.dropout wants a number, not low"},
    {"no_boolean", "data { path: 'x'\n standardize: yes }\nmiar {}\n",
     "e.txtpb:2: data.standardize wants true or false, not yes"},
    {"number_for_text", "data { path: 7 }\nmiar {}\n", "e.txtpb:1: data.path wants text in quotes, not 7"},
    {"no_such_option", "data { path: 'x' }\nmiar {}\ntraining { precision: FP16 }",
     "e.txtpb:3: training.precision has no value FP16; Valid: FP32, FP64, BF16"},
    {"option_in_quotes", "data { path: 'x' }\nmiar {}\ntraining { precision: \"FP64\" }",
     "e.txtpb:3: training.precision wants a name without quotes, not \"FP64\"; did you mean FP64? Valid: FP32, FP64, "
     "BF16"},
    {"option_by_number", "data { path: 'x' }\nmiar {}\ntraining { precision: 2 }",
     "e.txtpb:3: training.precision wants a name without quotes, not 2; Valid: FP32, FP64, BF16"},
    {"unspecified_option", "data { path: 'x' }\nmiar {}\noptimizer { schedule: SCHEDULE_UNSPECIFIED }",
     "e.txtpb:3: optimizer.schedule has no value SCHEDULE_UNSPECIFIED; Valid: CONSTANT, COSINE, STEP"},
    {"given_twice", "seed: 1\ndata { path: 'x' }\nmiar {}\nseed: 2",
     "e.txtpb:4: seed is given twice, first in line 1; keep one"},
    {"block_given_twice", "data { path: 'x' }\nmiar {}\ndata {\n standardize: true }",
     "e.txtpb:3: data is given twice, first in line 1; join the two blocks"},
    {"list_for_one_value", "data { path: 'x' }\nmiar { heads: [2, 4] }",
     "e.txtpb:2: miar.heads wants a whole number from 0 to 4294967295, not a list"},
    {"block_for_value", "data { path: 'x' }\nmiar {\n heads { n: 4 } }",
     "e.txtpb:3: miar.heads wants a whole number from 0 to 4294967295, not a block"},
    {"value_for_block", "data { path: 'x' }\nmiar {}\ntraining: 3",
     "e.txtpb:3: training is a block; write training { ... }"},
    {"equals_sign", "data { path: 'x' }\nmiar {}\ntraining { epochs = 3 }",
     "e.txtpb:3: expected \":\" after epochs, found \"=\""},
    {"no_colon", "data { path: 'x' }\nmiar {}\ntraining {\n epochs 3\n}",
     "e.txtpb:4: expected \":\" or \"{\" after epochs, found 3"},
    {"no_value", "data { path: 'x' }\nmiar {}\ntraining {\n epochs:\n batch_size: 3\n}",
     "e.txtpb:4: epochs has no value after \":\""},
    {"brace_never_closed", "data { path: 'x' }\nmiar {}\ntraining {\n epochs: 3\n",
     "e.txtpb:3: the block of training that starts here is never closed with \"}\""},
    {"brace_too_many", "data { path: 'x' }\nmiar {}\n}\nseed: 3", "e.txtpb:3: \"}\" closes nothing"},
    {"list_never_closed", "miar {}\ndata { path: 'x'\n modalities: ['text', 'audio'\n}\n",
     "e.txtpb:3: the list of modalities that starts here is not closed with \"]\": found } where \",\" or \"]\" was "
     "expected"},
    {"bad_escape", "data { path: '\\377' }\nmiar {}",
     "e.txtpb:1: data.path holds bytes that are not UTF-8 text: '\\377'"},

    {"batch_size_0", "data { path: 'x' }\nmiar {}\ntraining { batch_size: 0 }",
     "e.txtpb:3: training.batch_size must be from 1 to 16777216, not 0"},
    {"never_ends", "data { path: 'x' }\nmiar {}\ntraining {\nepochs: 0 }",
     "e.txtpb:4: training.epochs and training.max_steps are both 0, so training would never end; give one of them"},
    {"negative_rate", "data { path: 'x' }\nmiar {}\noptimizer { learning_rate: -1e-3 }",
     "e.txtpb:3: optimizer.learning_rate must be 0 or a positive number, not -0.001"},
    {"nan_rate", "data { path: 'x' }\nmiar {}\noptimizer { learning_rate: nan }",
     "e.txtpb:3: optimizer.learning_rate must be 0 or a positive number, not nan"},
    {"infinite_rate", "data { path: 'x' }\nmiar {}\noptimizer { learning_rate: 1e999 }",
     "e.txtpb:3: optimizer.learning_rate must be 0 or a positive number, not inf"},
    {"beta1", "data { path: 'x' }\nmiar {}\noptimizer { beta1: 1 }",
     "e.txtpb:3: optimizer.beta1 must be at least 0 and less than 1, not 1"},
    {"beta2", "data { path: 'x' }\nmiar {}\noptimizer { beta2: -0.1 }",
     "e.txtpb:3: optimizer.beta2 must be at least 0 and less than 1, not -0.1"},
    {"epsilon", "data { path: 'x' }\nmiar {}\noptimizer { epsilon: 0 }",
     "e.txtpb:3: optimizer.epsilon must be a positive number, not 0"},
    {"weight_decay", "data { path: 'x' }\nmiar {}\noptimizer { weight_decay: -1 }",
     "e.txtpb:3: optimizer.weight_decay must be 0 or a positive number, not -1"},
    {"warmup", "data { path: 'x' }\nmiar {}\ntraining { max_steps: 10 }\noptimizer { warmup_steps: 10 }",
     "e.txtpb:4: optimizer.warmup_steps (10) must be less than training.max_steps (10), or the learning rate never "
     "reaches "
     "its peak"},
    {"dropout", "data { path: 'x' }\nmiar { dropout: 1 }",
     "e.txtpb:2: miar.dropout must be at least 0 and less than 1, not 1"},
    {"foal_net_dropout", "data { path: 'x' }\nfoal_net {\n fusion_dropout: nan }",
     "e.txtpb:3: foal_net.fusion_dropout must be at least 0 and less than 1, not nan"},
    {"heads", "data { path: 'x' }\nmiar {\nheads: 3 }", "e.txtpb:3: miar.heads (3) must divide miar.dim (128)"},
    {"no_heads", "data { path: 'x' }\nfoal_net { heads: 0 }",
     "e.txtpb:2: foal_net.heads must be from 1 to 65536, not 0"},
    {"heads_of_own_width", "data { path: 'x' }\nfoal_net {\nadapter_output_dim: 74 }",
     "e.txtpb:3: foal_net.heads (4) must divide foal_net.adapter_output_dim (74)"},
    {"own_width", "data { path: 'x' }\nfoal_net { adapter_output_dim: 65540 }",
     "e.txtpb:2: foal_net.adapter_output_dim must be from 0 (none) to 65536, not 65540"},
    {"odd_dim", "data { path: 'x' }\nmiar { heads: 1 dim: 63 }",
     "e.txtpb:2: miar.dim must be even (positions are pairs of sine and cosine), not 63"},
    {"temperature", "data { path: 'x' }\nfoal_net { fixed_temperature: 0 }",
     "e.txtpb:2: foal_net.fixed_temperature must be a positive number, not 0"},
    {"alignment_temperature", "data { path: 'x' }\nmiar { alignment_temperature: -1 }",
     "e.txtpb:2: miar.alignment_temperature must be a positive number, not -1"},
    {"loss_weight", "data { path: 'x' }\nfoal_net { mem_weight: -0.5 }",
     "e.txtpb:2: foal_net.mem_weight must be 0 or a positive number, not -0.5"},
    {"one_class", "data { path: 'x' }\nfoal_net { classes: 1 }",
     "e.txtpb:2: foal_net.classes must be 0 (as many as the data has) or from 2 to 65536, not 1"},
    {"validation_share", "data { path: 'x'\n split { validation_share: 1 } }\nmiar {}",
     "e.txtpb:2: data.split.validation_share must be at least 0 and less than 1, not 1"},
    {"one_fold", "data { path: 'x' split {\n kind: K_FOLD\n folds: 1 } }\nmiar {}",
     "e.txtpb:3: data.split.folds must be at least 2, not 1"},
    {"fold_beyond_folds", "data { path: 'x' split {\n kind: K_FOLD\n folds: 3\n fold: 3 } }\nmiar {}",
     "e.txtpb:4: data.split.fold counts from 0, so with data.split.folds = 3 it must be from 0 to 2, not 3"},
    {"two_data_sources", "data {\n path: 'x'\n synthetic { kind: CLASSIFICATION } }\nfoal_net {}",
     "e.txtpb:3: data.synthetic (e.txtpb:3) and data.path (e.txtpb:2) are both given; keep one of them"},
    {"no_data_source", "seed: 3\ndata {}\nmiar {}",
     "e.txtpb:2: no data: give data.path (a dataset file) or data.synthetic (built-in data)"},
    {"no_data", "seed: 3\nmiar {}",
     "e.txtpb:1: no data: give data.path (a dataset file) or data.synthetic (built-in data)"},
    {"two_models", "data { path: 'x' }\nmiar {}\nfoal_net {}",
     "e.txtpb:2: foal_net (e.txtpb:3) and miar (e.txtpb:2) are both given; keep one of them"},
    {"no_model", "data { path: 'x' }",
     "e.txtpb:1: no model: add foal_net {}, miar {} or late_fusion {}, or name a preset"},
    {"preset_of_the_other_model", "data { path: 'x' }\nmiar {}\npreset: 'foal_net_official'",
     "e.txtpb:3: the preset foal_net_official is for foal_net, but the experiment has miar (e.txtpb:2); take away one "
     "of "
     "them"},
    {"unknown_preset", "data { path: 'x' }\npreset: 'miar_recomended'",
     "e.txtpb:2: there is no preset \"miar_recomended\"; did you mean miar_recommended? Presets: foal_net_official, "
     "foal_net_recommended or miar_recommended"},
    {"foal_net_regression", "foal_net {}\ndata {\n synthetic { kind: REGRESSION } }",
     "e.txtpb:3: data.synthetic.kind is REGRESSION, but foal_net only classifies; use CLASSIFICATION, or miar or "
     "late_fusion instead of foal_net"},
    {"balanced_regression", "miar {}\ndata { synthetic { kind: REGRESSION } }\ntraining { sampling: CLASS_BALANCED }",
     "e.txtpb:3: training.sampling is CLASS_BALANCED, but data.synthetic.kind is REGRESSION, which has no classes; use "
     "SHUFFLE"},
    {"synthetic_without_kind", "miar {}\ndata {\nsynthetic { samples: 5 } }",
     "e.txtpb:3: data.synthetic.kind is missing; valid: CLASSIFICATION, REGRESSION"},
    {"no_samples", "miar {}\ndata { synthetic { kind: REGRESSION\n samples: 0 } }",
     "e.txtpb:3: data.synthetic.samples must be from 1 to 10000000, not 0"},
    {"without_signal",
     "miar {}\ndata { synthetic { kind: REGRESSION without_signal: 'text'\n without_signal: 'text_b' } }",
     "e.txtpb:3: data.synthetic.without_signal names \"text_b\", but this data has audio, vision or text"},
    {"agreement", "foal_net {}\ndata { synthetic { kind: CLASSIFICATION\n agreement: nan } }",
     "e.txtpb:3: data.synthetic.agreement must be from 0 to 1, not nan"},
    {"agreement_of_regression", "miar {}\ndata { synthetic { kind: REGRESSION\n agreement: 0.5 } }",
     "e.txtpb:3: data.synthetic.agreement is 0.5, but data.synthetic.kind is REGRESSION; it is for CLASSIFICATION"},
    {"text_encoders", "miar {}\ndata { synthetic { kind: REGRESSION\n text_encoders: 0 } }",
     "e.txtpb:3: data.synthetic.text_encoders must be from 1 to 3, not 0"},
    {"raw_regression", "miar {}\ndata { synthetic { kind: REGRESSION\n raw: true } }",
     "e.txtpb:3: data.synthetic.raw is true, but data.synthetic.kind is REGRESSION; it is for CLASSIFICATION"},
    {"raw_agreement", "miar {}\ndata { synthetic { kind: CLASSIFICATION raw: true\n agreement: 0.5 } }",
     "e.txtpb:3: data.synthetic.agreement is 0.5, but raw data (data.synthetic.raw) has none; leave it at 0"},
    {"raw_without_signal", "miar {}\ndata { synthetic { kind: CLASSIFICATION raw: true\n without_signal: 'vision' } }",
     "e.txtpb:3: data.synthetic.without_signal names \"vision\", but this data has audio or text"},
    {"text_encoders_of_classes", "foal_net {}\ndata { synthetic { kind: CLASSIFICATION\n text_encoders: 2 } }",
     "e.txtpb:3: data.synthetic.text_encoders is 2, but data.synthetic.kind is CLASSIFICATION, which has no text; it "
     "is for REGRESSION"},
    {"modality_twice", "miar {}\ndata { path: 'x'\n modalities: ['text',\n 'text'] }",
     "e.txtpb:4: data.modalities names \"text\" twice"},
    {"modality_without_name", "miar {}\ndata { path: 'x'\n modalities: 'text'\n modalities: '' }",
     "e.txtpb:4: data.modalities holds \"\", which cannot be the name of a modality"},
    {"foal_net_modalities", "foal_net {}\ndata { path: 'x'\n modalities: ['text', 'audio', 'vision'] }",
     "e.txtpb:3: data.modalities has 3 entries, but foal_net takes exactly two: \"audio\", \"vision\""},
    {"miar_modalities", "miar {}\ndata { path: 'x'\n modalities: 'text' }",
     "e.txtpb:3: data.modalities has one entry, but miar needs at least two"},
    {"microbatches", "miar {}\ndata { path: 'x' }\ntraining { microbatches: 99999999 }",
     "e.txtpb:3: training.microbatches must be from 0 to 16777216, not 99999999"},
    {"log_every_0", "miar {}\ndata { path: 'x' }\ntraining { log_every_steps: 0 }",
     "e.txtpb:3: training.log_every_steps must be at least 1, not 0"},
    {"evaluation_batch_size_0", "miar {}\ndata { path: 'x' }\nevaluation { batch_size: 0 }",
     "e.txtpb:3: evaluation.batch_size must be from 1 to 16777216, not 0"},
    {"unknown_metric", "foal_net {}\ndata { path: 'x' }\nevaluation { select_by: 'wa' }",
     "e.txtpb:3: evaluation.select_by: there is no metric \"wa\"; did you mean WA or UA? Valid: WA, "
     "UA, macro_recall, weighted_F1, loss, mean_weighted_F1, mean_WA, macro_F1, micro_F1 or "
     "subset_accuracy"},
    {"metric_of_the_other_task", "miar {}\ndata { synthetic { kind: REGRESSION } }\nevaluation { select_by: 'UA' }",
     "e.txtpb:3: evaluation.select_by: there is no metric \"UA\" for regression; Valid: Has0_acc_2, "
     "Has0_F1_score, "
     "Non0_acc_2, Non0_F1_score, Mult_acc_5, Mult_acc_7, MAE, Corr, CCC, SIMS_acc_2, "
     "SIMS_acc_2_weak, SIMS_acc_3, SIMS_acc_5, SIMS_F1_score, SIMS_MAE, SIMS_Corr or loss"},
    {"patience_without_evaluation", "miar {}\ndata { path: 'x' }\nevaluation { every_epochs: 0\n patience: 3 }",
     "e.txtpb:4: evaluation.patience needs evaluations during training, but every_epochs and every_steps are both 0"},
    {"one_layer_and_all",
     "miar {}\ndata { path: 'x' }\nencoders { modality: 'text' path: 'e'\n layer: 2 weighted_layers: true }",
     "e.txtpb:4: encoders[0]: either layer, one layer's output, or weighted_layers, a sum of all; not both"},
    {"frozen_with_masks",
     "miar {}\ndata { path: 'x' }\nencoders { modality: 'audio' path: 'e'\n train: FROZEN\n spec_augment: true }",
     "e.txtpb:5: encoders[0].spec_augment is true, but encoders[0].train is FROZEN, and a frozen encoder computes in "
     "training what it computes in evaluation; remove spec_augment, or train the encoder"},
    {"name_is_a_path", "miar {}\ndata { path: 'x' }\nname: '../x'",
     "e.txtpb:3: name must be usable as the name of a folder (no \"/\", at most 200 bytes), not \"../x\""},
};

class WrongInput : public WithFolder, public testing::WithParamInterface<Wrong> {};

TEST_P(WrongInput, IsExplainedWithItsLine) {
  EXPECT_EQ(problems(GetParam().text), "e.txtpb: 1 problem:\n  " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(All, WrongInput, testing::ValuesIn(kWrong), [](const auto& info) { return info.param.name; });

using WrongFile = WithFolder;

TEST_F(WrongFile, ReportsAllProblemsAtOnceInTheOrderOfTheFile) {
  const std::string text =
      "data { pth: 'x' }\n"           // unknown
      "miar { dim: 'x' heads: 7 }\n"  // ill-typed; heads against it is not judged
      "training {\n"
      "  batch_size = 8\n"      // syntax
      "  sampling: BALANCED\n"  // option
      "  log_every_steps: 0\n"  // range
      "  epochs 5\n"            // syntax
      "}\n"
      "optimizer { beta1: 1 beta1: 0.5 }\n"  // range and twice
      "evaluation {\n";                      // never closed
  EXPECT_EQ(problems(text, {"training.epoks=3", "seed=x"}),
            "e.txtpb: 11 problems:\n"
            "  e.txtpb:1: unknown field data.pth; did you mean data.path?\n"
            "  e.txtpb:2: miar.dim wants a whole number from 0 to 4294967295, not 'x'\n"
            "  e.txtpb:4: expected \":\" after batch_size, found \"=\"\n"
            "  e.txtpb:5: training.sampling has no value BALANCED; did you mean CLASS_BALANCED? Valid: SHUFFLE, "
            "CLASS_BALANCED, SEQUENTIAL\n"
            "  e.txtpb:6: training.log_every_steps must be at least 1, not 0\n"
            "  e.txtpb:7: expected \":\" or \"{\" after epochs, found 5\n"
            "  e.txtpb:9: optimizer.beta1 is given twice, first in line 9; keep one\n"
            "  e.txtpb:9: optimizer.beta1 must be at least 0 and less than 1, not 1\n"
            "  e.txtpb:10: the block of evaluation that starts here is never closed with \"}\"\n"
            "  --set training.epoks=3: unknown field training.epoks; did you mean training.epochs?\n"
            "  --set seed=x: seed wants a whole number from 0 to 18446744073709551615, not x");
}

TEST_F(WrongFile, ManyProblemsAreCountedButNotAllPrinted) {
  std::string text = "data { path: 'x' }\nmiar {}\n";
  for (int i = 0; i < 1000; ++i) text += "zzz: 1\n";
  const std::string message = problems(text);
  EXPECT_THAT(message, testing::HasSubstr("e.txtpb: 1000 problems:\n"));
  EXPECT_THAT(message, testing::EndsWith("\n  ... and 950 more"));
}

TEST_F(WrongFile, MissingNamesSimilarOnes) {
  write("miar {}", "mosi.txtpb");
  EXPECT_EQ(problems_of_file((folder_ / "mosei.txtpb").string()),
            "cannot read mosei.txtpb: no such file; did you mean mosi.txtpb?");
  EXPECT_THAT(problems_of_file((folder_ / "no" / "x.txtpb").string()), testing::HasSubstr("no does not exist"));
}

TEST_F(WrongFile, FolderEmptyBinaryOrOtherEncodingIsOneMessage) {
  EXPECT_THAT(problems_of_file(folder_.string()), testing::HasSubstr("it is a folder"));
  EXPECT_THAT(problems(""), testing::StartsWith("e.txtpb is empty; an experiment names at least its data and a model"));
  EXPECT_THAT(problems(" \n\r\n\t"), testing::StartsWith("e.txtpb is empty"));
  EXPECT_THAT(problems("seed: 1\n# caf\xE9\n"), testing::StartsWith("e.txtpb:2: the byte 0xe9 is not UTF-8"));
  EXPECT_THAT(problems(std::string("seed: 1\n\n\0\0", 11)),
              testing::StartsWith("e.txtpb:3: holds the control character 0x00"));
  EXPECT_THAT(problems("\xFF\xFEs\0e\0"), testing::StartsWith("e.txtpb is UTF-16"));
  EXPECT_THAT(problems("\x89HDF\r\n\x1a\n...."), testing::StartsWith("e.txtpb is an HDF5 file, not an experiment"));
  EXPECT_THAT(problems(std::string(2 << 20, '#')), testing::StartsWith("e.txtpb is larger than 1 MiB"));
}

TEST_F(WrongFile, HeaderOfAnotherMessageIsTheOnlyProblem) {
  EXPECT_EQ(problems("# a search\n# proto-message: muster.search.Search\ntrials: 3\nbogus: 4\n"),
            "e.txtpb:2: the header says that this file is a muster.search.Search; expected a muster.config.Experiment");
}

TEST_F(WrongFile, OfTwoModelsBothAreChecked) {
  EXPECT_EQ(
      problems("data { path: 'x' }\nmiar {\n dropout: 2 }\nfoal_net {\n layers: 0\n bogus: 1 }\n"),
      "e.txtpb: 4 problems:\n"
      "  e.txtpb:2: foal_net (e.txtpb:4) and miar (e.txtpb:2) are both given; keep one of them\n"
      "  e.txtpb:3: miar.dropout must be at least 0 and less than 1, not 2\n"
      "  e.txtpb:5: foal_net.layers must be from 1 to 1024, not 0\n"
      "  e.txtpb:6: unknown field foal_net.bogus; foal_net has projection_dim, layers, heads, adapter_dim, "
      "adapter_output_dim, feature_dropout, projection_dropout, fusion_dropout, classifier_dropout, temperature_mode, "
      "fixed_temperature, avel_targets, avel_weight, mem_positive, mem_weight and classes");
}

TEST_F(WrongFile, AFrozenEncoderHasNoDropout) {
  for (const char* const field :
       {"hidden_dropout", "attention_dropout", "activation_dropout", "feature_projection_dropout", "layerdrop"}) {
    const auto with = [&](const char* value, const char* train) {
      return fmt::format(
          "miar {{}}\ndata {{ path: 'x' }}\nencoders {{ modality: 'audio' path: 'e'\n {}: {} train: {} }}", field,
          value, train);
    };
    EXPECT_EQ(
        problems(with("0.1", "FROZEN")),
        fmt::format("e.txtpb: 1 problem:\n  e.txtpb:4: encoders[0].{0} is 0.1, but encoders[0].train is FROZEN, and "
                    "a frozen encoder computes in training what it computes in evaluation; remove {0}, or train "
                    "the encoder",
                    field));
    EXPECT_NO_THROW(load(with("0", "FROZEN")));
    EXPECT_NO_THROW(load(with("0.1", "TRANSFORMER")));
  }
}

TEST_F(WrongFile, NestingWithoutEndIsNotFollowed) {
  std::string text;
  for (int i = 0; i < 100000; ++i) text += "a{";
  EXPECT_THAT(problems(text), testing::HasSubstr("e.txtpb:1: blocks are nested more than 20 deep"));
}

TEST_F(WrongFile, YamlAndJsonAreRefusedWithLines) {
  EXPECT_THAT(problems("training:\n  epochs: 3\n"), testing::HasSubstr("e.txtpb:1: training has no value after \":\""));
  EXPECT_THAT(problems("{\n \"seed\": 3\n}\n"), testing::HasSubstr("e.txtpb:2: expected a field name, found \"seed\""));
}

TEST_F(WrongFile, ForgottenQuoteIsFoundInItsLine) {
  EXPECT_THAT(problems("data { path: \"x.h5 }\nmiar {}\n"),
              testing::HasSubstr("\n  e.txtpb:1: the quotes that open in this line are not closed in it"));
}

}  // namespace
}  // namespace muster::config
