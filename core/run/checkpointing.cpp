#include "core/run/checkpointing.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "core/run/stop.h"
#include "distributed/collective_call.h"

namespace muster::run {
namespace {

// What a rank sends to the others: the signal it got, whether its clock asks for a stop, and for a save (rank 0's clock
// counts); then the saver's message.
constexpr size_t kOwnPart = 3;

}  // namespace

checkpoints::Retention retention_of(const config::Checkpoints& settings) {
  return {settings.keep_last(), settings.keep_best(), settings.keep_every_steps()};
}

checkpoints::Retention retention_when_finished(const config::Checkpoints& settings) {
  if (settings.keep_when_finished() == config::Checkpoints::ALL) return retention_of(settings);
  return {1, 0, settings.keep_every_steps()};
}

Checkpointing::Checkpointing(const Settings& settings, uint64_t newest, RunDirectory* directory,
                             distributed::Communicator& communicator, Progress& progress)
    : settings_(settings),
      directory_(directory),
      communicator_(communicator),
      progress_(progress),
      saver_(settings.run_directory + "/checkpoints", retention_of(settings.checkpoints),
             settings.checkpoints.asynchronous(), communicator,
             directory ? std::function<void()>([directory] {
               directory->require_held();
               directory->sync();
             })
                       : nullptr),
      begun_step_(newest),
      newest_(newest) {}

Checkpointing::Decision Checkpointing::between_steps(uint64_t step) {
  const auto since = [](Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  const double every = 60 * settings_.checkpoints.every_minutes();
  const bool time_is_up = settings_.time_limit > 0 && since(settings_.started) >= settings_.time_limit;
  const bool minutes_are_over = every > 0 && since(last_begun_) >= every;
  const std::string own{static_cast<char>(stop_signal()), static_cast<char>(time_is_up),
                        static_cast<char>(minutes_are_over)};
  const distributed::CollectiveLabel label("between steps");
  const auto messages = communicator_.all_gather_bytes(own + saver_.pending_message());

  Decision decision;
  std::vector<std::string> of_saver;
  for (size_t rank = 0; rank < messages.size(); ++rank) {
    of_saver.push_back(messages[rank].substr(kOwnPart));
    if (messages[rank][0] == 0 || !decision.stop.empty()) continue;
    decision.stop = name_of_signal(messages[rank][0]);
    if (messages.size() > 1) decision.stop += fmt::format(" (rank {})", rank);
  }
  if (decision.stop.empty() && messages[0][1]) decision.stop = "the time limit";
  if (const auto outcome = saver_.handle(of_saver)) note(*outcome);

  const auto& checkpoints = settings_.checkpoints;
  const auto every_nth = [](uint64_t count, uint64_t period) { return period > 0 && count > 0 && count % period == 0; };
  decision.save = messages[0][2] || every_nth(step, checkpoints.every_steps()) ||
                  (step % settings_.steps_per_epoch == 0 &&
                   every_nth(step / settings_.steps_per_epoch, checkpoints.every_epochs()));
  decision.save = decision.save && step != begun_step_;
  return decision;
}

void Checkpointing::prepare(const std::vector<checkpoints::NamedTensor>& tensors) {
  const auto& checkpoints = settings_.checkpoints;
  if (checkpoints.every_epochs() > 0 || checkpoints.every_steps() > 0 || checkpoints.every_minutes() > 0)
    saver_.prepare(tensors);
}

void Checkpointing::save(const checkpoints::CheckpointInfo& info, const std::vector<checkpoints::NamedTensor>& tensors,
                         bool waits) {
  if (info.step != begun_step_ || (!saver_.in_flight() && newest_ != info.step)) {
    distributed::run_on_all_ranks(communicator_, [&] {
      if (directory_) directory_->require_held();
    });
    begun_step_ = info.step;
    last_begun_ = Clock::now();
    for (const auto& outcome : saver_.save(info, tensors, waits)) note(outcome);
  }
  if (!waits) return;
  if (const auto outcome = saver_.finish()) note(*outcome);
}

void Checkpointing::note(const checkpoints::SaveOutcome& outcome) {
  stall_ += outcome.stall_seconds;
  longest_stall_ = std::max(longest_stall_, outcome.stall_seconds);
  if (directory_) {
    nlohmann::json row = {{"step", outcome.step},
                          {"committed", outcome.committed},
                          {"stall_seconds", outcome.stall_seconds},
                          {"write_seconds", outcome.write_seconds},
                          {"bytes", outcome.bytes}};
    if (!outcome.error.empty()) row["error"] = outcome.error;
    try {
      directory_->append_log("logs/checkpoints.jsonl", row);
    } catch (const Error& error) {
      progress_.line(error.what());  // a note about a save is not worth a run; the save itself has its own error
    }
  }
  if (outcome.committed) {
    ++saved_;
    bytes_ += outcome.bytes;
    newest_ = outcome.step;
    failed_in_a_row_ = 0;
    last_failure_.clear();
    if (!outcome.error.empty()) progress_.line("warning: " + outcome.error);
    return;
  }
  ++failed_;
  ++failed_in_a_row_;
  last_failure_ = outcome.error;
  const std::string kept =
      newest_ > 0 ? fmt::format("the checkpoint of step {} is still there", newest_) : "there is no checkpoint yet";
  const std::string text = fmt::format("the checkpoint of step {} could not be saved: {}", outcome.step, outcome.error);
  const uint32_t allowed = settings_.checkpoints.max_failures_in_a_row();
  if (failed_in_a_row_ > allowed)
    throw SharedError(
        ExitCode::kIo,
        fmt::format("{}\n{} saves in a row have failed now (checkpoints.max_failures_in_a_row is {}); {}. "
                    "Fix the cause, then continue with: muster resume {}",
                    text, failed_in_a_row_, allowed, kept, settings_.run_directory));
  progress_.line(fmt::format("warning: {}\ntraining continues; {}", text, kept));
}

nlohmann::json Checkpointing::summary() const {
  return {{"saved", saved_},
          {"failed", failed_},
          {"stall_seconds", stall_},
          {"longest_stall_seconds", longest_stall_},
          {"bytes", bytes_}};
}

}  // namespace muster::run
