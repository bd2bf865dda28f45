#include "core/config/document.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <sstream>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "core/config/resolved_text.h"
#include "core/metrics/metrics.h"

namespace muster::embedded {
extern const std::string_view experiment_descriptor_set;
}  // namespace muster::embedded

namespace muster::config {

namespace pb = google::protobuf;

namespace {

// Generated descriptors carry no comments; these do.
const pb::DescriptorPool& commented_schema() {
  static const pb::DescriptorPool* pool = [] {
    auto* made = new pb::DescriptorPool;
    pb::FileDescriptorSet files;
    bool right = files.ParseFromArray(embedded::experiment_descriptor_set.data(),
                                      static_cast<int>(embedded::experiment_descriptor_set.size()));
    for (const pb::FileDescriptorProto& file : files.file()) right = right && made->BuildFile(file) != nullptr;
    if (!right) throw Error(ExitCode::kInternal, "the built-in schema cannot be read");
    return made;
  }();
  return *pool;
}

template <class Descriptor>
std::vector<std::string> comment_of(const Descriptor* descriptor) {
  std::vector<std::string> lines;
  pb::SourceLocation location;
  if (descriptor == nullptr || !descriptor->GetSourceLocation(&location)) return lines;
  std::istringstream text(location.leading_comments);
  for (std::string line; std::getline(text, line);) lines.push_back(line.substr(line.rfind(' ', 0) == 0 ? 1 : 0));
  return lines;
}

class Writer {
 public:
  std::string text() const { return out_.str(); }

  void line(const std::string& text, int depth) {
    if (!text.empty()) out_ << std::string(static_cast<size_t>(depth) * 2, ' ') << text;
    out_ << '\n';
  }

  void comment(const std::vector<std::string>& lines, int depth, const std::string& indent = "") {
    for (const std::string& text : lines) line(text.empty() ? "#" : "# " + indent + text, depth);
  }

  void fields(const pb::Message& message, int depth) {
    const pb::Descriptor& type = *message.GetDescriptor();
    for (int i = 0; i < type.field_count(); ++i) {
      const pb::FieldDescriptor& field = *type.field(i);
      if (i > 0 || depth == 0) line("", 0);
      documentation(field, depth);
      value(message, field, depth);
    }
  }

 private:
  void documentation(const pb::FieldDescriptor& field, int depth) {
    if (field.message_type() != nullptr) {
      comment(comment_of(commented_schema().FindMessageTypeByName(field.message_type()->full_name())), depth);
    }
    comment(comment_of(commented_schema().FindFieldByName(field.full_name())), depth);
    if (field.enum_type() == nullptr) return;
    for (int i = 0; i < field.enum_type()->value_count(); ++i) {
      const pb::EnumValueDescriptor& option = *field.enum_type()->value(i);
      if (option.number() == 0) continue;
      const std::vector<std::string> lines = comment_of(commented_schema().FindEnumValueByName(option.full_name()));
      line("#   " + option.name() + (lines.empty() ? "" : ": " + lines.front()), depth);
      if (lines.size() > 1) comment({lines.begin() + 1, lines.end()}, depth, "    ");
    }
  }

  void value(const pb::Message& message, const pb::FieldDescriptor& field, int depth) {
    const pb::Reflection& reflection = *message.GetReflection();
    const int count =
        field.is_repeated() ? reflection.FieldSize(message, &field) : reflection.HasField(message, &field);
    if (count == 0) {
      line("# " + field.name() + " is not set.", depth);
    } else if (field.message_type() != nullptr) {
      line(field.name() + " {", depth);
      fields(reflection.GetMessage(message, &field), depth + 1);
      line("}", depth);
    } else if (field.is_repeated()) {
      std::vector<std::string> values;
      for (int i = 0; i < count; ++i) values.push_back(value_text(message, field, i));
      line(field.name() + ": [" + join(values) + "]", depth);
    } else {
      line(field.name() + ": " + value_text(message, field, -1), depth);
    }
  }

  std::ostringstream out_;
};

}  // namespace

std::string documented_text(const Experiment& experiment) {
  Writer writer;
  writer.line("# proto-file: core/config/experiment.proto", 0);
  writer.line("# proto-message: muster.config.Experiment", 0);
  writer.comment(comment_of(commented_schema().FindMessageTypeByName(experiment.GetDescriptor()->full_name())), 0);
  writer.fields(experiment, 0);
  writer.line("", 0);
  writer.comment({"Metrics that evaluation.select_by may name:",
                  "  regression:     " + join(metrics::selectable_names(data::Task::kRegression)),
                  "  classification: " + join(metrics::selectable_names(data::Task::kClassification))},
                 0);
  return writer.text();
}

}  // namespace muster::config
