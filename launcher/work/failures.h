#pragma once

#include <cstdint>
#include <string>

namespace muster::launcher {

// To be called when one of the trainings of a job (a search's trials, a study's cells) has failed. Throws
// Error(kBadConfig) when ten of this job have ended and none, of any job, has ever succeeded: then the whole is wrong,
// not some of its parts. whole, parts: "search", "trials". ended: of this job; succeeded: of all; name, reason: of the
// one that has failed.
void stop_when_all_fail(const std::string& whole, const std::string& parts, int64_t ended, int64_t succeeded,
                        const std::string& name, const std::string& reason);

}  // namespace muster::launcher
