#include "core/config/resolved_text.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <charconv>
#include <cmath>
#include <memory>

#include "core/config/stored.h"

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

}  // namespace

std::string value_text(const pb::Message& message, const pb::FieldDescriptor& field, int index) {
  std::string text;
  printer().PrintFieldValueToString(message, &field, index, &text);
  return text;
}

std::string resolved_text(const Experiment& experiment) {
  std::string body;
  printer().PrintToString(experiment, &body);
  return fmt::format(
      "# proto-file: core/config/experiment.proto\n# proto-message: muster.config.Experiment\n# {} {}\n{}",
      kResultsVersionKey, kResultsVersion, body);
}

}  // namespace muster::config
