#include "core/config/resolved_text.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/text_format.h>

#include <charconv>
#include <cmath>
#include <memory>
#include <sstream>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "core/config/fields.h"
#include "core/config/stored.h"
#include "core/metrics/metrics.h"

namespace muster::embedded {
extern const std::string_view experiment_descriptor_set;
}  // namespace muster::embedded

namespace muster::config {

namespace pb = google::protobuf;

namespace {

// The printer's own doubles have 15 or 17 digits; to_chars gives the fewest that read back exactly.
std::string shortest(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  std::string text(digits, end);
  const size_t exponent = text.find('e');
  // 1e-04 -> 1e-4
  if (exponent != std::string::npos && text.size() == exponent + 4 && text[exponent + 2] == '0')
    text.erase(exponent + 2, 1);
  return text;
}

struct DoublePrinter : pb::TextFormat::FastFieldValuePrinter {
  void PrintDouble(double value, pb::TextFormat::BaseTextGenerator* out) const override {
    out->PrintString(shortest(value));
  }
};

const pb::TextFormat::Printer& printer() {
  static const auto made = [] {
    auto printer = std::make_unique<pb::TextFormat::Printer>();
    printer->SetUseShortRepeatedPrimitives(true);
    printer->SetUseUtf8StringEscaping(true);
    printer->SetDefaultFieldValuePrinter(new DoublePrinter);  // owned by the printer
    return printer;
  }();
  return *made;
}

// Of a field that is set and no block.
std::string text_of(const pb::Message& message, const pb::FieldDescriptor& field) {
  std::string text;
  if (!field.is_repeated()) {
    printer().PrintFieldValueToString(message, &field, -1, &text);
    return text;
  }
  std::vector<std::string> values(static_cast<size_t>(message.GetReflection()->FieldSize(message, &field)));
  for (size_t i = 0; i < values.size(); ++i)
    printer().PrintFieldValueToString(message, &field, static_cast<int>(i), &values[i]);
  return fmt::format("[{}]", join(values));
}

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

class DocumentWriter {
 public:
  const std::string& text() const { return text_; }

  void line(const std::string& text, int depth) {
    text_ += fmt::format("{:{}}{}\n", "", text.empty() ? 0 : 2 * depth, text);
  }

  void comment(const std::vector<std::string>& lines, int depth, const std::string& indent = "") {
    for (const std::string& text : lines) line(text.empty() ? "#" : "# " + indent + text, depth);
  }

  void fields(const pb::Message& message, int depth) {
    const pb::Descriptor& type = *message.GetDescriptor();
    for (int i = 0; i < type.field_count(); ++i) {
      if (i > 0 || depth == 0) line("", 0);
      documentation(*type.field(i), depth);
      value(message, *type.field(i), depth);
    }
  }

 private:
  void documentation(const pb::FieldDescriptor& field, int depth) {
    if (field.message_type() != nullptr)
      comment(comment_of(commented_schema().FindMessageTypeByName(field.message_type()->full_name())), depth);
    comment(comment_of(commented_schema().FindFieldByName(field.full_name())), depth);
    if (field.enum_type() == nullptr) return;
    for (int i = 0; i < field.enum_type()->value_count(); ++i) {
      const pb::EnumValueDescriptor& option = *field.enum_type()->value(i);
      if (option.number() == 0) continue;
      const std::vector<std::string> lines = comment_of(commented_schema().FindEnumValueByName(option.full_name()));
      line(fmt::format("#   {}{}", option.name(), lines.empty() ? "" : ": " + lines.front()), depth);
      if (lines.size() > 1) comment({lines.begin() + 1, lines.end()}, depth, "    ");
    }
  }

  void value(const pb::Message& message, const pb::FieldDescriptor& field, int depth) {
    if (find_field(message, field.name()).field == nullptr) {
      line(fmt::format("# {} is not set.", field.name()), depth);
    } else if (field.message_type() != nullptr) {
      const auto& reflection = *message.GetReflection();
      const int blocks = field.is_repeated() ? reflection.FieldSize(message, &field) : 1;
      for (int i = 0; i < blocks; ++i) {
        line(field.name() + " {", depth);
        fields(field.is_repeated() ? reflection.GetRepeatedMessage(message, &field, i)
                                   : reflection.GetMessage(message, &field),
               depth + 1);
        line("}", depth);
      }
    } else {
      line(fmt::format("{}: {}", field.name(), text_of(message, field)), depth);
    }
  }

  std::string text_;
};

}  // namespace

std::string resolved_text(const Experiment& experiment) {
  std::string body;
  printer().PrintToString(experiment, &body);
  return fmt::format(
      "# proto-file: core/config/experiment.proto\n# proto-message: muster.config.Experiment\n# {} {}\n{}",
      kResultsVersionKey, kResultsVersion, body);
}

std::string documented_text(const Experiment& experiment) {
  DocumentWriter writer;
  writer.comment({"proto-file: core/config/experiment.proto", "proto-message: muster.config.Experiment"}, 0);
  writer.comment(comment_of(commented_schema().FindMessageTypeByName(experiment.GetDescriptor()->full_name())), 0);
  writer.fields(experiment, 0);
  writer.line("", 0);
  writer.comment({"Metrics that evaluation.select_by may name:",
                  "  regression:     " + join(metrics::selectable_names(data::Task::kRegression)),
                  "  classification: " + join(metrics::selectable_names(data::Task::kClassification)),
                  "  multilabel:     " + join(metrics::selectable_names(data::Task::kMultilabel))},
                 0);
  return writer.text();
}

std::string value_text(const Experiment& experiment, const std::string& path, const std::string& absent) {
  const FieldAt at = find_field(experiment, path);
  if (at.field == nullptr) return absent;
  return at.field->message_type() != nullptr ? "(set)" : text_of(*at.message, *at.field);
}

}  // namespace muster::config
