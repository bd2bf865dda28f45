#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// What `muster doctor` finds out. docs/doctor.md lists the checks by name.
namespace muster::launcher::doctor {

enum class State { kOk, kSkipped, kWarning, kFailed };
NLOHMANN_JSON_SERIALIZE_ENUM(
    State, {{State::kOk, "ok"}, {State::kSkipped, "skipped"}, {State::kWarning, "warning"}, {State::kFailed, "failed"}})

struct Finding {
  std::string check{};     // its name, such as "free_space"
  std::string expected{};  // one line, no full stop; empty where there is nothing to compare
  std::string found{};     // the same
  State state = State::kOk;
  std::string fix{};                                  // what a person can do; empty when ok or skipped
  std::string host{};                                 // where it was found; empty: about the job as a whole
  int rank = -1;                                      // -1: not about one rank
  nlohmann::json figures = nlohmann::json::object();  // names end in their unit

  void skip(std::string what) { state = State::kSkipped, found = std::move(what); }
  void warn(std::string what_helps) { state = State::kWarning, fix = std::move(what_helps); }
  void fail(std::string what_helps) { state = State::kFailed, fix = std::move(what_helps); }
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Finding, check, expected, found, state, fix, host, rank, figures)

// Ends a check whose subject does not work at all.
struct Failure : std::runtime_error {
  Failure(const std::string& found, std::string what_helps) : std::runtime_error(found), fix(std::move(what_helps)) {}
  std::string fix;
};

// Takes each finding as soon as there is one.
using Report = std::function<void(const Finding&)>;

// One row of a table of checks. `examine` completes a finding that is ok and has its name and `expected`; one in which
// nothing is found is not reported.
template <class Subject>
struct Check {
  const char* name;
  const char* expected;
  void (*examine)(Subject& subject, Finding& finding);
  const char* needs = "";  // an earlier check: if that failed or was skipped, this one is left out
};

template <class Subject>
void run_checks(const std::vector<Check<Subject>>& checks, Subject& subject, const Report& report) {
  std::set<std::string> passed{""};
  for (const auto& check : checks) {
    if (passed.count(check.needs) == 0) continue;
    Finding finding{check.name, check.expected};
    try {
      check.examine(subject, finding);
    } catch (const Failure& failure) {
      finding.found = failure.what();
      finding.fail(failure.fix);
    }
    if (finding.state == State::kOk || finding.state == State::kWarning) passed.insert(check.name);
    if (!finding.found.empty()) report(finding);
  }
}

}  // namespace muster::launcher::doctor
