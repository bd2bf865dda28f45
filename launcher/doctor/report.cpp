#include "launcher/doctor/report.h"

#include <algorithm>
#include <cstdio>

namespace muster::launcher::doctor {
namespace {

constexpr int kNameColumns = 20;

std::string plural(int count, const std::string& one) {
  return std::to_string(count) + " " + one + (count == 1 ? "" : "s");
}

}  // namespace

void Reporter::add(const Finding& finding) {
  findings_.push_back(finding);
  // An ok says no more on the second rank than on the first; anything else does on another machine.
  const std::string same =
      finding.check + "\n" + name_of(finding.state) +
      (finding.state == State::kOk || finding.state == State::kSkipped ? ""
                                                                       : "\n" + finding.host + "\n" + finding.expected);
  if (shown_.insert(same).second && !as_json_) print(finding);
}

void Reporter::print(const Finding& finding) {
  const bool broken = finding.state == State::kWarning || finding.state == State::kFailed;
  std::string where;
  if (broken && finding.rank >= 0) where = " (rank " + std::to_string(finding.rank) + " on " + finding.host + ")";
  std::printf("%-8s %-*s %s%s\n", finding.state == State::kFailed ? "FAILED" : name_of(finding.state), kNameColumns,
              finding.check.c_str(), finding.found.c_str(), where.c_str());
  if (broken && !finding.expected.empty())
    std::printf("%*sexpected: %s\n", kNameColumns + 10, "", finding.expected.c_str());
  if (broken && !finding.fix.empty()) std::printf("%*sfix: %s\n", kNameColumns + 10, "", finding.fix.c_str());
  std::fflush(stdout);
}

int Reporter::finish(const nlohmann::json& job) {
  int counts[4] = {};
  std::set<std::string> seen;
  for (const auto& finding : findings_)
    if (seen.insert(finding.check + "\n" + finding.host + name_of(finding.state)).second)
      ++counts[static_cast<int>(finding.state)];
  const int warnings = counts[static_cast<int>(State::kWarning)], failed = counts[static_cast<int>(State::kFailed)];
  if (!as_json_) {
    std::printf("\n%s, %s, %d failed\n", plural(static_cast<int>(seen.size()), "check").c_str(),
                plural(warnings, "warning").c_str(), failed);
    return failed;
  }
  nlohmann::json document = job;
  document["ok"] = failed == 0;
  document["warnings"] = warnings;
  document["failed"] = failed;
  document["findings"] = nlohmann::json::array();
  for (const auto& finding : findings_) document["findings"].push_back(to_json(finding));
  std::printf("%s\n", document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return failed;
}

}  // namespace muster::launcher::doctor
