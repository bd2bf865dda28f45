#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "base/text.h"

// What `muster doctor` finds out. Names of checks are listed in docs/doctor.md.
namespace muster::launcher::doctor {

enum class State { kOk, kSkipped, kWarning, kFailed };

struct Finding {
  std::string check;  // its name, as "free_space"
  State state = State::kOk;
  std::string found;                                  // one line, no full stop
  std::string expected;                               // the same; empty where there is nothing to compare
  std::string fix;                                    // what a person can do; empty when ok or skipped
  std::string host;                                   // where it was found; empty: about the job as a whole
  int rank = -1;                                      // -1: not of a rank
  nlohmann::json figures = nlohmann::json::object();  // names end in their unit
};

// Takes each finding as soon as there is one.
using Report = std::function<void(const Finding&)>;

const char* name_of(State state);
nlohmann::json to_json(const Finding& finding);
Finding finding_of(const nlohmann::json& json);

}  // namespace muster::launcher::doctor
