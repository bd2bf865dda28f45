#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/process.h"

namespace muster::launcher {

// A study's trials by Optuna's states.
struct TrialCounts {
  int64_t complete, pruned, failed, running;

  int64_t succeeded() const { return complete + pruned; }
  int64_t ended() const { return succeeded() + failed; }
};
// standing: the answer to the request `counts`.
TrialCounts counts_of(const nlohmann::json& standing);

// The Python process that runs Optuna (optuna_process.py), which knows all trials and chooses the next one's values.
// They exchange lines of JSON. A process that dies, or does not answer for ten minutes, is started again and the study
// opened again. For use by one thread at a time.
class OptunaProcess {
 public:
  // Starts it and opens the study. opening: the request `open` without its name. Throws Error(kBadConfig) when the
  // study cannot be joined (another space, no Optuna), Error(kIo) when its storage cannot be used.
  explicit OptunaProcess(nlohmann::json opening);

  // What the study held when it was opened last: counts, trials that run, notes.
  const nlohmann::json& opened() const { return opened_; }

  // The answer to a request, which is sent again when the process had to be restarted; or, if instead() then gives one,
  // that request. Not for `ask`. Throws as the constructor; Error(kInternal) when the process keeps dying.
  nlohmann::json request(const nlohmann::json& request, const std::function<nlohmann::json()>& instead = {});
  // A new trial's {number, values}, or {"full": true} when so many trials exist. After a death: one of this job's that
  // is not in `known`, if there is one.
  nlohmann::json ask(int64_t limit, const std::vector<int64_t>& known);

 private:
  void start();
  std::optional<nlohmann::json> exchange(const nlohmann::json& request);

  nlohmann::json opening_, opened_;
  std::optional<InteractiveProcess> process_;
};

}  // namespace muster::launcher
