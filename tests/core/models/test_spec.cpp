// What the rest of the program relies on, for every model there is.
#include "core/models/spec.h"

#include <gtest/gtest.h>

#include "core/config/load.h"
#include "core/metrics/metrics.h"
#include "core/models/make_model.h"
#include "tests/core/models/defaults.h"

namespace muster::models {
namespace {

TEST(ModelSpecs, EveryBlockOfTheSchemaIsARegisteredModel) {
  std::vector<std::string> names;
  for (const ModelSpec* spec : all_models()) {
    names.push_back(spec->name);
    EXPECT_EQ(find_model(spec->name), spec);
    EXPECT_FALSE(spec->title.empty() || spec->tasks.empty()) << spec->name;
  }
  EXPECT_EQ(names, model_blocks());
  EXPECT_EQ(find_model("none"), nullptr);
}

TEST(ModelSpecs, EveryFieldHasADefault) {
  for (const ModelSpec* spec : all_models()) {
    const config::Experiment experiment = config::default_experiment(spec->name);
    ASSERT_EQ(model_of(experiment), spec->name);
    const auto* field = experiment.GetDescriptor()->FindFieldByName(spec->name);
    const auto& block = experiment.GetReflection()->GetMessage(experiment, field);
    for (int i = 0; i < field->message_type()->field_count(); ++i)
      EXPECT_TRUE(block.GetReflection()->HasField(block, field->message_type()->field(i)))
          << spec->name << "." << field->message_type()->field(i)->name();
  }
  EXPECT_EQ(model_of(config::default_experiment("")), "");
}

TEST(ModelSpecs, EveryModelIsBuiltForItsTasksAndNamesItsLosses) {
  for (const ModelSpec* spec : all_models())
    for (const data::Task task : spec->tasks) {
      DataShape shape;
      for (const std::string& name : spec->modalities.defaults) {
        shape.modalities.push_back(name);
        shape.dims.push_back(8);
      }
      shape.outputs = task == data::Task::kRegression ? 1 : 3;
      shape.task = task;
      const auto model = make_model(config::default_experiment(spec->name), shape);
      EXPECT_EQ(model->outputs(), shape.outputs) << spec->name;
      EXPECT_FALSE(model->row_terms().empty()) << spec->name;
      EXPECT_TRUE(model->batch_terms().empty() || model->embedding_dim() > 0) << spec->name;
      const auto names = metrics::selectable_names(task);
      EXPECT_NE(std::find(names.begin(), names.end(), spec->default_metric(task)), names.end()) << spec->name;
    }
}

TEST(ModelSpecs, ModalitiesAreJudged) {
  const ModelSpec &foal_net = *find_model("foal_net"), &miar = *find_model("miar");
  EXPECT_EQ(foal_net.modality_problem({"audio", "vision"}), "");
  EXPECT_EQ(foal_net.modality_problem({"speech", "face"}), "");
  EXPECT_EQ(foal_net.modality_problem({"vision", "audio"}),
            "lists \"vision\" before \"audio\", but foal_net takes the audio modality first, then the visual one");
  EXPECT_EQ(miar.modality_problem({"a", "b", "c", "d"}), "");
  EXPECT_EQ(miar.modality_problem({"a"}), "has one entry, but miar needs at least two");
  EXPECT_NE(miar.modality_problem({"a", "joint"}), "");
}

}  // namespace
}  // namespace muster::models
