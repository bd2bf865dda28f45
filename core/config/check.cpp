#include "core/config/check.h"

#include <algorithm>
#include <cmath>

#include "core/config/fields.h"
#include "core/config/suggest.h"

namespace muster::config {

namespace {

// Far beyond any use, near enough to catch a slip before it asks for terabytes.
constexpr uint32_t kWidest = 65536;
constexpr uint32_t kDeepest = 1024;
constexpr uint32_t kLargestBatch = 1 << 24;

class Checker {
 public:
  Checker(const LoadedExperiment& loaded, const std::set<std::string>& unusable, bool complete, Problems& problems)
      : loaded_(loaded), unusable_(unusable), complete_(complete), problems_(problems) {}

  void experiment() {
    name();
    data();
    models();
    optimizer();
    training();
    evaluation();
    survival();
  }

 private:
  using Paths = std::vector<std::string>;

  const Experiment& all() const { return loaded_.experiment; }

  // A problem of the values at these paths together. It is placed at the value most likely to be the mistake: an
  // override rather than the file, the file rather than a preset or a default, and among equals the first.
  void fail(const Paths& paths, const std::string& message) {
    std::string place;
    for (const std::string& path : paths) {
      if (unusable_.count(path) != 0) return;
      const std::string found = where(loaded_, path);
      if (place.empty() || suspicion(found) > suspicion(place)) place = found;
    }
    problems_.at(place, message);
  }

  static int suspicion(const std::string& place) {
    if (place == "default") return 0;
    if (place.rfind("preset ", 0) == 0) return 1;
    return place.rfind("--set ", 0) == 0 ? 3 : 2;
  }

  // Something required that is nowhere: placed at the nearest block that is there.
  void fail_absent(const std::string& path, const std::string& message) {
    if (!complete_ || unusable_.count(path) != 0) return;
    std::string block = path;
    while (!block.empty()) {
      const size_t dot = block.rfind('.');
      block = dot == std::string::npos ? "" : block.substr(0, dot);
      const std::string place = where(loaded_, block);
      if (place != "default") return problems_.at(place, message);
    }
    problems_.at_line(1, message);
  }

  std::string value(const std::string& path) const {
    const FieldAt at = find_field(all(), path);
    return at.field == nullptr ? "not set" : value_text(*at.message, *at.field, -1);
  }

  void require(bool right, const std::string& path, const std::string& wanted) {
    if (!right) fail({path}, path + " must be " + wanted + ", not " + value(path));
  }
  void require_share(double share, const std::string& path, const std::string& why = "") {
    require(share >= 0 && share < 1, path, "at least 0 and less than 1" + why);
  }
  void require_positive(double number, const std::string& path) {
    require(std::isfinite(number) && number > 0, path, "a positive number");
  }
  void require_not_negative(double number, const std::string& path) {
    require(std::isfinite(number) && number >= 0, path, "0 or a positive number");
  }
  void require_count(uint32_t count, const std::string& path, uint32_t largest) {
    require(count >= 1 && count <= largest, path, "from 1 to " + std::to_string(largest));
  }

  void name() {
    const std::string& name = all().name();
    const bool is_folder_name = name != "." && name != ".." && name.find_first_of("/\n\r\t") == std::string::npos;
    if (!is_folder_name || name.size() > 200) {
      fail({"name"}, "name must be usable as the name of a folder (no \"/\", at most 200 bytes), not " + value("name"));
    }
  }

  void data() {
    const Data& data = all().data();
    if (data.has_path() && data.has_synthetic()) {
      fail({"data.synthetic", "data.path"}, "data.synthetic (" + where(loaded_, "data.synthetic") +
                                                ") and data.path (" + where(loaded_, "data.path") +
                                                ") are both given; keep one of them");
    } else if (!data.has_path() && !data.has_synthetic()) {
      if (unusable_.count("data.path") == 0) {
        fail_absent("data.synthetic", "no data: give data.path (a dataset file) or data.synthetic (built-in data)");
      }
    }
    if (data.has_synthetic()) synthetic(data.synthetic());
    modalities(data);
    split(data.split());
  }

  void synthetic(const Synthetic& synthetic) {
    if (!synthetic.has_kind()) {
      fail_absent("data.synthetic.kind", "data.synthetic.kind is missing; valid: CLASSIFICATION, REGRESSION");
    }
    const uint32_t fewest = 1, most = 10000000;
    require(synthetic.samples() >= fewest && synthetic.samples() <= most, "data.synthetic.samples",
            "from " + std::to_string(fewest) + " to " + std::to_string(most));
    require(synthetic.noise() >= 0 && synthetic.noise() <= 1000, "data.synthetic.noise", "from 0 to 1000");
    require(synthetic.agreement() >= 0 && synthetic.agreement() <= 1, "data.synthetic.agreement", "from 0 to 1");
    require(synthetic.text_encoders() >= 1 && synthetic.text_encoders() <= 3, "data.synthetic.text_encoders",
            "from 1 to 3");
    if (synthetic.has_kind()) signal(synthetic);
    if (all().has_foal_net() && synthetic.kind() == Synthetic::REGRESSION) {
      fail({"data.synthetic.kind", "foal_net"},
           "data.synthetic.kind is REGRESSION, but foal_net only classifies; use CLASSIFICATION, or miar instead of "
           "foal_net");
    }
    if (synthetic.kind() == Synthetic::REGRESSION && all().training().sampling() == Training::CLASS_BALANCED) {
      fail({"training.sampling", "data.synthetic.kind"},
           "training.sampling is CLASS_BALANCED, but data.synthetic.kind is REGRESSION, which has no classes; use "
           "SHUFFLE");
    }
  }

  // What is planted fits the kind. The names are those of core/data/synthetic.h, which refuses others as well.
  void signal(const Synthetic& synthetic) {
    const bool classification = synthetic.kind() == Synthetic::CLASSIFICATION;
    std::vector<std::string> names{"audio", "vision"};
    if (!classification) names.push_back("text");
    if (!classification && synthetic.text_encoders() > 1) names.push_back("text_b");
    if (!classification && synthetic.text_encoders() > 2) names.push_back("text_c");
    for (int i = 0; i < synthetic.without_signal_size(); ++i) {
      const std::string &name = synthetic.without_signal(i),
                        path = "data.synthetic.without_signal[" + std::to_string(i) + "]";
      if (unusable_.count("data.synthetic.without_signal") != 0) break;
      if (std::find(names.begin(), names.end(), name) != names.end()) continue;
      fail({path}, "data.synthetic.without_signal names \"" + name + "\", but this data has " + either(names));
    }
    if (!classification && synthetic.agreement() != 0) {
      fail({"data.synthetic.agreement", "data.synthetic.kind"},
           "data.synthetic.agreement is " + value("data.synthetic.agreement") +
               ", but data.synthetic.kind is REGRESSION; it is for CLASSIFICATION");
    }
    if (classification && synthetic.text_encoders() != 1) {
      fail({"data.synthetic.text_encoders", "data.synthetic.kind"},
           "data.synthetic.text_encoders is " + value("data.synthetic.text_encoders") +
               ", but data.synthetic.kind is CLASSIFICATION, which has no text; it is for REGRESSION");
    }
  }

  void modalities(const Data& data) {
    std::set<std::string> seen;
    for (int i = 0; i < data.modalities_size(); ++i) {
      const std::string &name = data.modalities(i), path = "data.modalities[" + std::to_string(i) + "]";
      if (unusable_.count("data.modalities") != 0) return;
      if (name.empty() || name == "." || name.find('/') != std::string::npos) {
        fail({path}, "data.modalities holds \"" + name + "\", which cannot be the name of a modality");
      } else if (!seen.insert(name).second) {
        fail({path}, "data.modalities names \"" + name + "\" twice");
      }
    }
    const int count = data.modalities_size();
    if (count == 0) return;
    if (all().has_foal_net() && !all().has_miar() && count != 2) {
      fail({"data.modalities", "foal_net"}, "data.modalities has " + std::to_string(count) +
                                                " entries, but foal_net takes exactly two: \"audio\", \"vision\"");
    }
    if (all().has_miar() && !all().has_foal_net() && count < 2) {
      fail({"data.modalities", "miar"}, "data.modalities has one entry, but miar needs at least two");
    }
  }

  void split(const Split& split) {
    require(split.folds() >= 2, "data.split.folds", "at least 2");
    if (split.kind() == Split::K_FOLD && split.folds() >= 2 && split.fold() >= split.folds()) {
      fail({"data.split.fold", "data.split.folds"},
           "data.split.fold counts from 0, so with data.split.folds = " + std::to_string(split.folds()) +
               " it must be from 0 to " + std::to_string(split.folds() - 1) + ", not " + std::to_string(split.fold()));
    }
    require_share(split.validation_share(), "data.split.validation_share");
  }

  void models() {
    if (all().has_foal_net() && all().has_miar()) {
      fail({"miar", "foal_net"}, "foal_net (" + where(loaded_, "foal_net") + ") and miar (" + where(loaded_, "miar") +
                                     ") are both given; keep one of them");
    } else if (!all().has_foal_net() && !all().has_miar()) {
      fail_absent("foal_net", "no model: add foal_net {} or miar {}, or name a preset");
    }
    if (all().has_foal_net()) foal_net(all().foal_net());
    if (all().has_miar()) miar(all().miar());
  }

  void foal_net(const FoalNet& model) {
    require_count(model.projection_dim(), "foal_net.projection_dim", kWidest);
    require_count(model.layers(), "foal_net.layers", kDeepest);
    require_count(model.heads(), "foal_net.heads", kWidest);
    require(model.adapter_dim() <= kWidest, "foal_net.adapter_dim", "from 0 (none) to " + std::to_string(kWidest));
    require_share(model.feature_dropout(), "foal_net.feature_dropout");
    require_share(model.projection_dropout(), "foal_net.projection_dropout");
    require_share(model.fusion_dropout(), "foal_net.fusion_dropout");
    require_share(model.classifier_dropout(), "foal_net.classifier_dropout");
    require_positive(model.fixed_temperature(), "foal_net.fixed_temperature");
    require_not_negative(model.avel_weight(), "foal_net.avel_weight");
    require_not_negative(model.mem_weight(), "foal_net.mem_weight");
    classes(model.classes(), "foal_net.classes");
  }

  void miar(const Miar& model) {
    require_count(model.dim(), "miar.dim", kWidest);
    require_count(model.layers(), "miar.layers", kDeepest);
    require_count(model.heads(), "miar.heads", kWidest);
    require_count(model.ffn_dim(), "miar.ffn_dim", kWidest);
    require_count(model.alignment_dim(), "miar.alignment_dim", kWidest);
    require(model.dim() % 2 == 0, "miar.dim", "even (positions are pairs of sine and cosine)");
    if (model.heads() > 0 && model.dim() % model.heads() != 0) {
      fail({"miar.heads", "miar.dim"},
           "miar.heads (" + value("miar.heads") + ") must divide miar.dim (" + value("miar.dim") + ")");
    }
    require_share(model.dropout(), "miar.dropout");
    require_positive(model.alignment_temperature(), "miar.alignment_temperature");
    require_not_negative(model.alignment_weight(), "miar.alignment_weight");
    classes(model.classes(), "miar.classes");
  }

  void classes(uint32_t classes, const std::string& path) {
    require(classes != 1 && classes <= kWidest, path,
            "0 (as many as the data has) or from 2 to " + std::to_string(kWidest));
  }

  void optimizer() {
    const Optimizer& optimizer = all().optimizer();
    require_not_negative(optimizer.learning_rate(), "optimizer.learning_rate");
    require_share(optimizer.beta1(), "optimizer.beta1");
    require_share(optimizer.beta2(), "optimizer.beta2");
    require_positive(optimizer.epsilon(), "optimizer.epsilon");
    require_not_negative(optimizer.weight_decay(), "optimizer.weight_decay");
    require_not_negative(optimizer.clip_norm(), "optimizer.clip_norm");
    require(optimizer.final_lr_ratio() >= 0 && optimizer.final_lr_ratio() <= 1, "optimizer.final_lr_ratio",
            "from 0 to 1");
    require_positive(optimizer.step_factor(), "optimizer.step_factor");
    require(optimizer.step_epochs() >= 1, "optimizer.step_epochs", "at least 1");
    const uint64_t last = all().training().max_steps();
    if (last > 0 && optimizer.warmup_steps() >= last) {
      fail({"optimizer.warmup_steps", "training.max_steps"},
           "optimizer.warmup_steps (" + value("optimizer.warmup_steps") + ") must be less than training.max_steps (" +
               value("training.max_steps") + "), or the learning rate never reaches its peak");
    }
  }

  void training() {
    const Training& training = all().training();
    if (training.epochs() == 0 && training.max_steps() == 0) {
      fail({"training.epochs", "training.max_steps"},
           "training.epochs and training.max_steps are both 0, so training would never end; give one of them");
    }
    require_count(training.batch_size(), "training.batch_size", kLargestBatch);
    require(training.microbatches() <= kLargestBatch, "training.microbatches",
            "from 0 to " + std::to_string(kLargestBatch));
    require(training.max_skipped_in_a_row() >= 1, "training.max_skipped_in_a_row", "at least 1");
    require(training.threads() <= 4096, "training.threads", "from 0 (OMP_NUM_THREADS) to 4096");
    require(training.log_every_steps() >= 1, "training.log_every_steps", "at least 1");
    if (training.reproducible() && training.threads() > 1) {
      fail({"training.threads", "training.reproducible"},
           "training.reproducible needs one thread per rank (training.threads = 1, or 0), not " +
               value("training.threads") + ": sums shared among threads round differently; use more ranks instead");
    }
  }

  void evaluation() {
    const Evaluation& evaluation = all().evaluation();
    require_count(evaluation.batch_size(), "evaluation.batch_size", kLargestBatch);
    require_not_negative(evaluation.min_improvement(), "evaluation.min_improvement");
    if (evaluation.patience() > 0 && evaluation.every_epochs() == 0 && evaluation.every_steps() == 0) {
      fail({"evaluation.patience", "evaluation.every_epochs", "evaluation.every_steps"},
           "evaluation.patience needs evaluations during training, but every_epochs and every_steps are both 0");
    }
    if (!evaluation.select_by().empty()) select_by(evaluation.select_by());
  }

  void survival() {
    require_not_negative(all().checkpoints().every_minutes(), "checkpoints.every_minutes");
    require(all().checkpoints().keep_last() >= 1, "checkpoints.keep_last", "at least 1");
    require_not_negative(all().deadlines().setup(), "deadlines.setup");
    require_not_negative(all().deadlines().step(), "deadlines.step");
    require_not_negative(all().deadlines().save(), "deadlines.save");
    require_not_negative(all().deadlines().evaluation(), "deadlines.evaluation");
  }

  void select_by(const std::string& metric) {
    const bool classifies = all().has_foal_net() || all().data().synthetic().kind() == Synthetic::CLASSIFICATION;
    const bool regresses = !all().has_foal_net() && all().data().synthetic().kind() == Synthetic::REGRESSION;
    std::vector<std::string> names;
    if (!classifies) names = regression_metrics();
    for (const std::string& name : classification_metrics()) {
      if (!regresses && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    if (std::find(names.begin(), names.end(), metric) != names.end()) return;
    const std::vector<std::string> near = nearest(metric, names);
    fail({"evaluation.select_by"}, "evaluation.select_by: there is no metric \"" + metric + "\"" +
                                       (classifies  ? " for classification"
                                        : regresses ? " for regression"
                                                    : "") +
                                       "; " + (near.empty() ? "" : "did you mean " + either(near) + "? ") +
                                       "Valid: " + either(names));
  }

  const LoadedExperiment& loaded_;
  const std::set<std::string>& unusable_;
  bool complete_;
  Problems& problems_;
};

}  // namespace

const std::vector<std::string>& regression_metrics() {
  static const std::vector<std::string> names = {
      "MAE", "Corr", "Mult_acc_7", "Mult_acc_5", "Has0_acc_2", "Has0_F1_score", "Non0_acc_2", "Non0_F1_score", "loss"};
  return names;
}

const std::vector<std::string>& classification_metrics() {
  static const std::vector<std::string> names = {"WA", "UA", "weighted_F1", "loss"};
  return names;
}

void check_experiment(const LoadedExperiment& loaded, const std::set<std::string>& unusable, bool complete,
                      Problems& problems) {
  Checker(loaded, unusable, complete, problems).experiment();
}

std::vector<std::string> ineffective_settings(const LoadedExperiment& loaded, const Experiment& defaults) {
  const Experiment& experiment = loaded.experiment;
  std::vector<std::string> notes;
  const auto unless = [&](bool effective, const std::string& path, const std::string& condition) {
    const FieldAt given = find_field(experiment, path), normal = find_field(defaults, path);
    const std::string place = where(loaded, path);
    if (effective || given.field == nullptr || place == "default" || place.rfind("preset ", 0) == 0) return;
    const std::string value = value_text(*given.message, *given.field, -1);
    if (normal.field != nullptr && value_text(*normal.message, *normal.field, -1) == value) return;
    notes.push_back(place + ": " + path + " = " + value + " has no effect: it is used only with " + condition);
  };
  const Split& split = experiment.data().split();
  const bool one_group = split.kind() == Split::LEAVE_ONE_GROUP_OUT, k_fold = split.kind() == Split::K_FOLD;
  unless(one_group, "data.split.test_group", "data.split.kind: LEAVE_ONE_GROUP_OUT");
  unless(k_fold || (one_group && !split.has_test_group()), "data.split.fold",
         one_group ? "no data.split.test_group" : "data.split.kind: LEAVE_ONE_GROUP_OUT or K_FOLD");
  unless(k_fold, "data.split.folds", "data.split.kind: K_FOLD");
  unless(one_group || k_fold, "data.split.validation_share", "data.split.kind: LEAVE_ONE_GROUP_OUT or K_FOLD");
  unless(one_group || k_fold, "data.split.validation_by_group", "data.split.kind: LEAVE_ONE_GROUP_OUT or K_FOLD");
  unless(experiment.foal_net().temperature_mode() == FoalNet::FIXED_TEMPERATURE, "foal_net.fixed_temperature",
         "foal_net.temperature_mode: FIXED_TEMPERATURE");
  const Optimizer& optimizer = experiment.optimizer();
  unless(optimizer.schedule() == Optimizer::COSINE, "optimizer.final_lr_ratio", "optimizer.schedule: COSINE");
  unless(optimizer.schedule() == Optimizer::STEP, "optimizer.step_factor", "optimizer.schedule: STEP");
  unless(optimizer.schedule() == Optimizer::STEP, "optimizer.step_epochs", "optimizer.schedule: STEP");
  unless(experiment.training().non_finite() == Training::SKIP_STEP, "training.max_skipped_in_a_row",
         "training.non_finite: SKIP_STEP");
  return notes;
}

}  // namespace muster::config
