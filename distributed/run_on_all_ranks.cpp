#include <algorithm>

#include "distributed/communicator.h"

namespace muster::distributed {

void run_on_all_ranks(Communicator& communicator, const std::function<void()>& work) {
  // First byte: 'k' for success, otherwise the exit code; then the message.
  std::string outcome = "k";
  try {
    work();
  } catch (const Error& error) {
    outcome = std::string(1, static_cast<char>(error.code())) + error.what();
  } catch (const std::exception& error) {
    outcome = std::string(1, static_cast<char>(ExitCode::kInternal)) + error.what();
  }
  const auto outcomes = communicator.all_gather_bytes(outcome);
  const auto failed = [](const std::string& o) { return o != "k"; };
  const auto first = std::find_if(outcomes.begin(), outcomes.end(), failed);
  if (first == outcomes.end()) return;
  std::string message;
  if (std::all_of(outcomes.begin(), outcomes.end(), [&](const std::string& o) { return o == *first; })) {
    message = first->substr(1);
  } else {
    for (size_t rank = 0; rank < outcomes.size(); ++rank) {
      if (!failed(outcomes[rank])) continue;
      if (!message.empty()) message += "\n";
      message +=
          "rank " + std::to_string(rank) + " of " + std::to_string(outcomes.size()) + ": " + outcomes[rank].substr(1);
    }
  }
  throw SharedError(static_cast<ExitCode>((*first)[0]), message);
}

}  // namespace muster::distributed
