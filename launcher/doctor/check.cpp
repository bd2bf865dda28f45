#include "launcher/doctor/check.h"

#include <cstdio>

namespace muster::launcher::doctor {
namespace {

constexpr State kStates[] = {State::kOk, State::kSkipped, State::kWarning, State::kFailed};

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

}  // namespace muster::launcher::doctor
