#include "launcher/doctor/check.h"

#include <cstdio>

namespace muster::launcher::doctor {
namespace {

constexpr State kStates[] = {State::kOk, State::kSkipped, State::kWarning, State::kFailed};

std::string with_unit(double value, const char* unit) {
  char text[64];
  std::snprintf(text, sizeof text, value < 10 && value != static_cast<int64_t>(value) ? "%.1f %s" : "%.0f %s", value,
                unit);
  return text;
}

}  // namespace

const char* name_of(State state) {
  switch (state) {
    case State::kOk:
      return "ok";
    case State::kSkipped:
      return "skipped";
    case State::kWarning:
      return "warning";
    default:
      return "failed";
  }
}

nlohmann::json to_json(const Finding& finding) {
  nlohmann::json json = {{"check", finding.check}, {"state", name_of(finding.state)}, {"found", finding.found}};
  if (!finding.expected.empty()) json["expected"] = finding.expected;
  if (!finding.fix.empty()) json["fix"] = finding.fix;
  if (!finding.host.empty()) json["host"] = finding.host;
  if (finding.rank >= 0) json["rank"] = finding.rank;
  if (!finding.figures.empty()) json["figures"] = finding.figures;
  return json;
}

Finding finding_of(const nlohmann::json& json) {
  Finding finding;
  finding.check = json.at("check");
  for (const State state : kStates)
    if (json.at("state") == name_of(state)) finding.state = state;
  finding.found = json.at("found");
  finding.expected = json.value("expected", "");
  finding.fix = json.value("fix", "");
  finding.host = json.value("host", "");
  finding.rank = json.value("rank", -1);
  finding.figures = json.value("figures", nlohmann::json::object());
  return finding;
}

std::string bytes_text(double bytes) {
  if (bytes < 1e3) return with_unit(bytes, "bytes");
  if (bytes < 1e6) return with_unit(bytes / 1e3, "KB");
  if (bytes < 1e9) return with_unit(bytes / 1e6, "MB");
  if (bytes < 1e12) return with_unit(bytes / 1e9, "GB");
  return with_unit(bytes / 1e12, "TB");
}

std::string seconds_text(double seconds) {
  if (seconds < 1e-3) return with_unit(seconds * 1e6, "us");
  if (seconds < 1) return with_unit(seconds * 1e3, "ms");
  return with_unit(seconds, "s");
}

}  // namespace muster::launcher::doctor
