#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {
namespace {

constexpr const char* kStateNames[] = {"ok", "skipped", "warning", "failed"};

}  // namespace

const char* name_of(State state) { return kStateNames[static_cast<int>(state)]; }

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
  while (json.at("state") != name_of(finding.state))
    finding.state = static_cast<State>(static_cast<int>(finding.state) + 1);
  finding.found = json.at("found");
  finding.expected = json.value("expected", "");
  finding.fix = json.value("fix", "");
  finding.host = json.value("host", "");
  finding.rank = json.value("rank", -1);
  finding.figures = json.value("figures", nlohmann::json::object());
  return finding;
}

Finding run_check(const std::string& name, const std::string& expected, const std::function<void(Finding&)>& examine) {
  Finding finding;
  finding.check = name;
  finding.expected = expected;
  try {
    examine(finding);
  } catch (const Failure& failure) {
    finding.found = failure.what();
    finding.fail(failure.fix);
  }
  return finding;
}

}  // namespace muster::launcher::doctor
