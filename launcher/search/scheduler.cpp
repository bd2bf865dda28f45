#include "launcher/search/scheduler.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "base/error.h"
#include "base/host.h"
#include "base/text.h"

namespace muster::launcher {
namespace {

using nlohmann::json;

// A trial that was running this often when a job was lost, with no validation in between, may well be the reason (the
// kernel kills processes that take too much memory).
constexpr int64_t kMostLosses = 5;
constexpr size_t kMostReasons = 20;  // shown on lines of their own

std::string name_of(int64_t number) { return fmt::format("trial {}", number); }

json with_job(json opening, const std::string& job) {
  opening["job"] = job;
  return opening;
}

}  // namespace

Scheduler::Scheduler(const SearchDirectory& directory, json opening, ProgressLine& progress)
    : directory_(directory),
      search_(directory.spec().search),
      progress_(progress),
      job_(fmt::format("{}-{}-{}", host_name(), ::getpid(), std::time(nullptr))),
      claim_(directory.jobs().claim(job_)),
      optuna_(with_job(std::move(opening), job_)) {
  const auto& opened = optuna_.opened();
  if (const std::string text = opened.value("repaired", ""); !text.empty())
    progress_.note("a job that died has left the journal of the search damaged: " + text);
  for (const auto& note : opened.value("notes", json::array())) progress_.note("note: " + note.get<std::string>());
  find_orphans();
  tidy();
}

// Finds trials that jobs which are gone have left running. Until such a job is claimed here, another one may continue
// its trials: so what is running is asked once more after the last claim.
void Scheduler::find_orphans() {
  std::set<std::string> alive;  // finding out takes seconds when a job is on another machine
  const auto take_over = [&](const std::string& job) {
    // Empty: a user's own script has begun it.
    if (job.empty() || job == job_ || taken_over_.count(job) || alive.count(job)) return false;
    auto claim = directory_.jobs().take_over(job, [&](const std::string& text) { progress_.note(text); });
    if (!claim) alive.insert(job);
    return claim && taken_over_.emplace(job, std::move(claim)).second;
  };
  json running;
  for (bool is_known = false; !is_known;) {
    is_known = true;
    running = optuna_.request({{"op", "counts"}, {"best", 0}})["running"];
    for (const auto& job : directory_.jobs().names()) is_known = !take_over(job) && is_known;
    for (const auto& trial : running) is_known = !take_over(trial.value("job", "")) && is_known;
  }
  for (const auto& trial : running)
    if (const auto gone = taken_over_.find(trial.value("job", "")); gone != taken_over_.end())
      orphans_.push_back({trial["number"], gone->second->was_lost()});
  if (!orphans_.empty())
    progress_.note(fmt::format("continues {} that an earlier job has left",
                               plural(static_cast<int64_t>(orphans_.size()), "trial")));
  std::reverse(orphans_.begin(), orphans_.end());
}

void Scheduler::tidy() {
  const json trials = optuna_.request({{"op", "trials"}}),
             standing = optuna_.request({{"op", "counts"}, {"best", search_.keep_weights()}});
  std::set<int64_t> best;
  for (const auto& trial : standing["best"]) best.insert(trial["number"].get<int64_t>());
  for (const auto& trial : trials["trials"]) {
    const int64_t number = trial["number"];
    if (trial["state"] == "COMPLETE" && trial["value"].is_number()) directory_.require_value(number, trial["value"]);
    if (trial["state"] != "RUNNING" && trial["state"] != "WAITING") directory_.tidy(number, best.count(number) > 0);
  }
}

json Scheduler::ask(const json& request) {
  const std::string op = request["op"];
  if (op == "next") return next();
  if (op == "report") return report(request);
  if (op == "tell") return tell(request);
  if (op == "leave") active_.erase(request["number"].get<int64_t>());
  if (op == "stopping") stopping_ = true;
  return json::object();
}

json Scheduler::next() {
  const json nothing_to_do = {{"do", active_.empty() ? "end" : "wait"}};
  if (stopping_) return nothing_to_do;
  if (const double hours = search_.budget().hours(); hours > 0 && seconds() > hours * 3600) {
    ended_early_ = fmt::format("the {:.6g} hours of a job (budget.hours) are over; the same command continues", hours);
    is_out_of_time_ = true;
    return nothing_to_do;
  }
  json trial;
  if (!adopt(trial)) {
    trial = optuna_.ask(search_.budget().trials(), {active_.begin(), active_.end()});
    if (trial.value("full", false)) {
      ended_early_ = trial.value("why", "");
      // Another job may have been lost since this one began.
      if (active_.empty()) find_orphans();
      return orphans_.empty() ? nothing_to_do : json{{"do", "wait"}};
    }
  }
  active_.insert(trial["number"].get<int64_t>());
  return {{"do", "train"}, {"number", trial["number"]}, {"values", trial["params"]}};
}

// A trial that an earlier job has left.
bool Scheduler::adopt(json& trial) {
  while (!orphans_.empty()) {
    const Orphan orphan = orphans_.back();
    orphans_.pop_back();
    trial = optuna_.request({{"op", "adopt"}, {"number", orphan.number}, {"lost", orphan.was_lost}});
    if (trial.value("prune", false)) {  // only the record of its end is missing
      const json& reported = trial["reported"];
      tell({{"op", "tell"},
            {"number", orphan.number},
            {"state", "PRUNED"},
            {"value", reported.empty() ? json() : reported.back()[1]},
            {"reason", ""}});
      directory_.tidy(orphan.number, false);
      continue;
    }
    if (trial.value("losses", int64_t{0}) < kMostLosses) return true;
    tell({{"op", "tell"},
          {"number", orphan.number},
          {"state", "FAIL"},
          {"value", nullptr},
          {"reason", fmt::format("the job was lost {} times while it was trained, without a validation in between "
                                 "(killed because memory ran out?)",
                                 kMostLosses)}});
    directory_.tidy(orphan.number, false);
  }
  return false;
}

json Scheduler::report(const json& request) {
  if (!request.contains("step")) return {{"prune", false}, {"stop", stopping_}};
  return {{"prune", optuna_.request(request).value("prune", false)}, {"stop", stopping_}};
}

json Scheduler::tell(const json& request) {
  const int64_t number = request["number"];
  optuna_.request(request);
  active_.erase(number);
  ++ended_;
  // Which trials have the best weights now.
  const auto standing = optuna_.request({{"op", "counts"}, {"best", search_.keep_weights() + 1}});
  json result = {{"keep_weights", false}, {"drop_weights", json::array()}};
  for (size_t place = 0; place < standing["best"].size(); ++place) {
    const json& best = standing["best"][place]["number"];
    if (place >= search_.keep_weights())
      result["drop_weights"].push_back(best);
    else if (best == number)
      result["keep_weights"] = true;
  }
  show(request, standing);
  if (request["state"] == "FAIL")
    stop_when_all_fail("search", "trials", ended_, counts_of(standing).succeeded(), name_of(number), request["reason"]);
  return result;
}

// request: of a trial that has ended.
void Scheduler::show(const json& request, const json& standing) {
  const TrialCounts counts = counts_of(standing);
  const int64_t trials = search_.budget().trials();
  const std::string name = name_of(request["number"]);
  const bool failed = request["state"] == "FAIL";
  if (const std::string reason = request["reason"];
      failed && reasons_shown_.size() < kMostReasons && reasons_shown_.insert(reason).second)
    progress_.note(name + " failed: " + reason);
  std::string text = fmt::format("[{}/{}] ", counts.ended(), trials);
  if (!standing["best"].empty()) {
    const json& best = standing["best"][0];
    text += fmt::format("best {} {:.6g} ({})  ", search_.objective().metric(), best["value"].get<double>(),
                        name_of(best["number"]));
  }
  const double each = seconds() / static_cast<double>(ended_);
  text += fmt::format("left {}  {} running, {} failed, {} pruned; {}: ",
                      duration_text(each * static_cast<double>(std::max<int64_t>(0, trials - counts.ended()))),
                      active_.size(), counts.failed, counts.pruned, name);
  if (request["state"] == "PRUNED") text += "pruned at ";
  const json& value = request["value"];
  progress_.show(text + (failed              ? "failed"
                         : value.is_number() ? fmt::format("{:.6g}", value.get<double>())
                                             : "no value"));
}

json Scheduler::standing() { return optuna_.request({{"op", "counts"}, {"best", 1}}); }

void Scheduler::require_any_success() {
  if (is_out_of_time_) return;
  const TrialCounts counts = counts_of(standing());
  if (counts.failed == 0 || counts.running != 0 || counts.succeeded() > 0) return;
  const json trials = optuna_.request({{"op", "trials"}})["trials"];
  const json first =
      *std::find_if(trials.begin(), trials.end(), [](const json& trial) { return trial["state"] == "FAIL"; });
  const json& reason = first["reason"];  // a user's own script may have given none
  throw Error(ExitCode::kInternal, fmt::format("all {} trials failed. They count in budget.trials: once the cause is "
                                               "fixed, start again in another --search-dir. The first, {}: {}",
                                               counts.failed, name_of(first["number"]),
                                               reason.is_string() ? reason.get<std::string>() : "no reason given"));
}

}  // namespace muster::launcher
