#pragma once

#include <string>
#include <vector>

#include "core/config/experiment.pb.h"

namespace muster::config {

// A value that is not the same in two experiments, in text format; "(not set)" where it is absent.
struct Difference {
  std::string path;
  std::string before;
  std::string after;
};

// All values that differ, in the order of the schema.
std::vector<Difference> differences(const Experiment& before, const Experiment& after);

// Whether a run may go on with another value there: what comes out of the steps is the same but for how many there are,
// rounding that another number of ranks brings as well, or nothing. data.path is one: what the data holds is compared
// by itself.
bool may_change_in_a_run(const std::string& path, const Experiment& experiment);

}  // namespace muster::config
