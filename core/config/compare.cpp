#include "core/config/compare.h"

#include <algorithm>
#include <set>

#include "core/config/fields.h"
#include "core/config/resolved_text.h"

namespace muster::config {

namespace pb = google::protobuf;

namespace {

std::string text_at(const Experiment& experiment, const std::string& path) {
  const FieldAt at = find_field(experiment, path);
  if (at.field == nullptr) return "(not set)";
  if (at.field->message_type() != nullptr) return "(set)";
  if (!at.field->is_repeated()) return value_text(*at.message, *at.field, -1);
  std::string list = "[";
  for (int i = 0; i < at.message->GetReflection()->FieldSize(*at.message, at.field); ++i)
    list += (i ? ", " : "") + value_text(*at.message, *at.field, i);
  return list + "]";
}

// A block that only one of the two has is one difference, not one per value.
void compare(const Experiment& before, const Experiment& after, const pb::Descriptor& block, const std::string& prefix,
             std::vector<Difference>& found) {
  for (int i = 0; i < block.field_count(); ++i) {
    const auto& field = *block.field(i);
    const std::string path = prefix.empty() ? field.name() : prefix + "." + field.name();
    const std::string old_text = text_at(before, path), new_text = text_at(after, path);
    if (old_text != new_text) {
      found.push_back({path, old_text, new_text});
    } else if (field.message_type() != nullptr && !field.is_repeated() && old_text == "(set)") {
      compare(before, after, *field.message_type(), path, found);
    }
  }
}

}  // namespace

std::vector<Difference> differences(const Experiment& before, const Experiment& after) {
  std::vector<Difference> found;
  compare(before, after, *Experiment::descriptor(), "", found);
  return found;
}

bool may_change_in_a_run(const std::string& path, const Experiment& experiment) {
  static const std::set<std::string> free{"name",
                                          "preset",
                                          "data.path",
                                          "training.epochs",
                                          "training.max_steps",
                                          "training.log_every_steps",
                                          "training.threads",
                                          "training.device",
                                          "training.share_device",
                                          "training.data_on_device",
                                          "evaluation.patience"};
  for (const char* block : {"checkpoints", "deadlines"})
    if (path == block || path.rfind(std::string(block) + ".", 0) == 0) return true;
  // Where bits matter this does.
  if (path == "training.microbatches") return !experiment.training().reproducible();
  return free.count(path) != 0;
}

}  // namespace muster::config
