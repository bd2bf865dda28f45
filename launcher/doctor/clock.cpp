#include "launcher/doctor/clock.h"

#include <time.h>

#include <algorithm>
#include <cmath>

#include "launcher/doctor/ranks.h"

namespace muster::launcher::doctor {
namespace {

constexpr int kGatherings = 40;
constexpr double kWarnSeconds = 1, kFailSeconds = 300;  // munge, and so Slurm, refuses messages that are 300 s old

double now() {
  timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The least that the offset can be, with its sign.
double certain(const Offset& offset) {
  return offset.lowest > 0 ? offset.lowest : offset.highest < 0 ? offset.highest : 0;
}

}  // namespace

Offset offset_of(const Stamps& other, const Stamps& own) {
  Offset offset{-1e300, 1e300};
  for (size_t i = 0; i < own.entered.size(); ++i) {
    offset.lowest = std::max(offset.lowest, other.entered[i] - own.left[i]);
    offset.highest = std::min(offset.highest, other.left[i] - own.entered[i]);
  }
  return offset;
}

void check_clocks(distributed::Communicator& communicator, const std::vector<std::string>& hosts,
                  const Report& report) {
  Finding finding{"clock", State::kSkipped, "one rank alone", "within 1 s of rank 0's clock", "", "", -1, {}};
  if (communicator.size() == 1) return report(finding);
  Stamps own;
  for (int i = 0; i < kGatherings; ++i) {
    own.entered.push_back(now());
    communicator.all_gather_bytes("");
    own.left.push_back(now());
  }
  std::vector<Stamps> all;
  for (const auto& answer : each_rank(communicator, [&] {
         return nlohmann::json{{"entered", own.entered}, {"left", own.left}};
       }))
    all.push_back({answer["entered"].get<std::vector<double>>(), answer["left"].get<std::vector<double>>()});
  double worst = 0, resolution = 0;
  for (size_t rank = 1; rank < all.size(); ++rank) {
    const Offset offset = offset_of(all[rank], all[0]);
    resolution = std::max(resolution, offset.highest - offset.lowest);
    if (std::abs(certain(offset)) <= std::abs(worst)) continue;
    worst = certain(offset);
    finding.rank = static_cast<int>(rank);
  }
  finding.state = std::abs(worst) > kFailSeconds   ? State::kFailed
                  : std::abs(worst) > kWarnSeconds ? State::kWarning
                                                   : State::kOk;
  finding.figures = {{"offset_seconds", worst}, {"resolution_seconds", resolution}};
  if (finding.state == State::kOk) {
    finding.rank = -1;
    finding.found = "all ranks within " + seconds_text(std::max(std::abs(worst), resolution)) + " of rank 0";
    return report(finding);
  }
  finding.host = hosts[finding.rank];
  finding.found = seconds_text(std::abs(worst)) + (worst > 0 ? " ahead of" : " behind") + " rank 0's";
  finding.fix =
      "run a time service on every machine (chronyd or systemd-timesyncd; chronyc makestep sets it at once): logs and "
      "reports mix up times, and "
      "beyond 5 minutes Slurm's messages are refused";
  report(finding);
}

}  // namespace muster::launcher::doctor
