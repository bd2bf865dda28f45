#pragma once

#include <string>

#include "distributed/communicator.h"

namespace muster::distributed {

// Collective. Returns when `value` is the same on every rank. Otherwise every rank throws one SharedError(code) that
// says that `what` (a noun, in the singular: "the library version") differs, names the ranks and hosts that differ from
// the majority (at a tie: from rank 0), shows the values where they are short and printable, and ends with `advice` (a
// sentence).
void require_same(Communicator& communicator, const std::string& what, const std::string& value,
                  const std::string& advice, ExitCode code = ExitCode::kBadConfig);

}  // namespace muster::distributed
