#pragma once

#include <set>
#include <string>
#include <vector>

#include "launcher/doctor/check.h"

namespace muster::launcher::doctor {

// Keeps all findings of a doctor's visit, and prints each as it comes (as_json: all of them at the end, on standard
// output).
class Reporter {
 public:
  explicit Reporter(bool as_json) : as_json_(as_json) {}

  // What several ranks of a machine find alike is shown once; --json has each.
  void add(const Finding& finding);
  // The closing line, or the JSON document. Returns the number of failed findings.
  int finish(const nlohmann::json& job);

 private:
  void print(const Finding& finding);

  bool as_json_;
  std::vector<Finding> findings_;
  std::set<std::string> shown_;
};

}  // namespace muster::launcher::doctor
