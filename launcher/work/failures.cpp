#include "launcher/work/failures.h"

#include "base/error.h"

namespace muster::launcher {

void stop_when_all_fail(const std::string& whole, const std::string& parts, int64_t ended, int64_t succeeded,
                        const std::string& name, const std::string& reason) {
  constexpr int64_t kHopeless = 10;
  if (ended < kHopeless || succeeded > 0) return;
  throw Error(ExitCode::kBadConfig,
                           "all " + std::to_string(ended) + " " + parts +
                               " of this job have failed, and none has ever succeeded, so the " + whole +
                               " was stopped; the last one, " + name + ": " + reason);
}

}  // namespace muster::launcher
