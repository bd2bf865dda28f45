#include "launcher/search/scheduler.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "distributed/error.h"
#include "distributed/watchdog.h"

namespace muster::launcher {
namespace {

using distributed::Error;
using distributed::ExitCode;
using nlohmann::json;

// So many failures before any success mean that the search itself is wrong, not some of its points.
constexpr int64_t kHopeless = 10;

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

std::string duration_text(double seconds) {
  char text[32];
  const auto minutes = static_cast<int64_t>(seconds / 60 + 0.5);
  std::snprintf(text, sizeof text, "%ldh%02ldm", minutes / 60, minutes % 60);
  return text;
}

std::string name_of_this_job() {
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  return std::string(host) + "-" + std::to_string(::getpid()) + "-" + std::to_string(std::time(nullptr));
}

json with_job(json opening, const std::string& job) {
  opening["job"] = job;
  return opening;
}

}  // namespace

Scheduler::Scheduler(const SearchDirectory& directory, json opening, std::function<void(const std::string&)> line)
    : directory_(directory), search_(directory.spec().search), line_(std::move(line)), job_(name_of_this_job()), claim_(directory.claim_job(job_)),
      brain_(with_job(std::move(opening), job_)) {
  const auto& opened = brain_.opened();
  if (const std::string text = opened.value("repaired", ""); !text.empty()) line_("the journal of the search was torn by a job that died: " + text);
  for (const auto& note : opened.value("notes", json::array())) line_("note: " + note.get<std::string>());
  adopt_orphans();
}

Scheduler::~Scheduler() {
  over_ = true;
  if (thread_.joinable()) thread_.join();
  for (auto& [name, lock] : taken_over_) {
    lock.reset();
    directory_.forget_job(name);
  }
  claim_.reset();
  directory_.forget_job(job_);
}

void Scheduler::adopt_orphans() {
  for (const auto& trial : brain_.opened()["running"]) {
    const std::string job = trial.value("job", "");
    if (job.empty()) continue;  // a user's own script has begun it
    if (!taken_over_.count(job)) {
      auto lock = directory_.take_over(job, line_);
      if (!lock) continue;
      taken_over_[job] = std::move(lock);
    }
    orphans_.push_back(trial["number"]);
  }
  if (!orphans_.empty()) line_("goes on with " + std::to_string(orphans_.size()) + (orphans_.size() == 1 ? " trial" : " trials") + " that an earlier job has left");
  std::reverse(orphans_.begin(), orphans_.end());  // taken from the end, oldest first
}

std::string Scheduler::listen(int ranks, bool loopback) {
  line_to_groups_ = std::make_unique<distributed::Lifeline>(0, ranks);
  const std::string address = line_to_groups_->listen(loopback);
  if (!address.empty()) thread_ = std::thread([this] { serve(); });
  return address;
}

void Scheduler::serve() {
  while (!over_) {
    std::vector<pollfd> waits;
    line_to_groups_->add_to(waits);
    ::poll(waits.data(), waits.size(), 100);
    for (const auto& event : line_to_groups_->receive()) {
      if (event.kind != distributed::Lifeline::Kind::kMessage) continue;
      json answer;
      try {
        answer = ask(json::parse(event.payload));
      } catch (const Error& error) {
        const std::lock_guard guard(mutex_);
        trouble_ = error.what();
        trouble_code_ = error.code();
        answer = {{"trouble", trouble_}, {"code", static_cast<int>(trouble_code_)}};
      }
      line_to_groups_->send(event.rank, distributed::Lifeline::Kind::kMessage, answer.dump());
    }
  }
}

json Scheduler::ask(const json& request) {
  const std::lock_guard guard(mutex_);
  if (!trouble_.empty()) throw Error(trouble_code_, trouble_);
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
  const double hours = search_.budget().hours();
  if (hours > 0 && std::chrono::duration<double>(Clock::now() - started_).count() > hours * 3600) return nothing_to_do;
  const bool resume = !orphans_.empty();
  json trial;
  if (resume) {
    trial = brain_.request({{"op", "adopt"}, {"number", orphans_.back()}});
    orphans_.pop_back();
  } else {
    std::vector<int64_t> known;
    for (const auto& [number, since] : active_) known.push_back(number);
    trial = brain_.ask(search_.budget().trials(), known);
    if (trial.value("full", false)) return nothing_to_do;
  }
  active_[trial["number"]] = Clock::now();
  return {{"do", "train"}, {"number", trial["number"]}, {"values", trial["params"]}, {"resume", resume}};
}

json Scheduler::report(const json& request) {
  const json answer = brain_.request({{"op", "report"}, {"number", request["number"]}, {"step", request["step"]}, {"value", request["value"]}});
  return {{"prune", answer.value("prune", false)}, {"stop", stopping_}};
}

json Scheduler::tell(const json& request) {
  const int64_t number = request["number"];
  const json answer = brain_.request({{"op", "tell"}, {"number", number}, {"state", request["state"]}, {"value", request["value"]}, {"reason", request["reason"]}});
  active_.erase(number);
  ++ended_;
  const bool failed = request["state"] == "FAIL";
  failed_in_a_row_ = failed ? failed_in_a_row_ + 1 : 0;
  if (failed_in_a_row_ == ended_ && ended_ == kHopeless)
    throw Error(ExitCode::kBadConfig, "the first " + std::to_string(kHopeless) + " trials have all failed, so the search was stopped; the last one: " + request["reason"].get<std::string>());

  // Which trials have the best weights now.
  const auto standing = brain_.request({{"op", "counts"}, {"best", search_.keep_weights() + 1}});
  json result = {{"keep_weights", false}, {"drop_weights", json::array()}};
  int64_t place = 0;
  for (const auto& best : standing["best"]) {
    if (place++ < search_.keep_weights()) {
      if (best["number"] == number) result["keep_weights"] = true;
    } else {
      result["drop_weights"].push_back(best["number"]);
    }
  }
  const auto& counts = standing["counts"];
  std::string text = "trial " + std::to_string(number) + ": ";
  if (failed) text += "failed: " + request["reason"].get<std::string>();
  else text += (request["state"] == "PRUNED" ? "given up, " : "") + search_.objective().metric() + " " + (request["value"].is_number() ? number_text(request["value"]) : "none");
  const int64_t done = counts["COMPLETE"].get<int64_t>() + counts["PRUNED"].get<int64_t>() + counts["FAIL"].get<int64_t>();
  text += "  (" + std::to_string(done) + "/" + std::to_string(search_.budget().trials()) + " ended, " + std::to_string(counts["PRUNED"].get<int64_t>()) + " given up, " +
          std::to_string(counts["FAIL"].get<int64_t>()) + " failed, " + std::to_string(active_.size()) + " running";
  if (!standing["best"].empty()) text += "; best " + number_text(standing["best"][0]["value"]) + " of trial " + std::to_string(standing["best"][0]["number"].get<int64_t>());
  const double per_trial = std::chrono::duration<double>(Clock::now() - started_).count() / static_cast<double>(ended_);
  text += "; left " + duration_text(per_trial * static_cast<double>(std::max<int64_t>(0, search_.budget().trials() - done))) + ")";
  line_(text);
  return result;
}

json Scheduler::standing() {
  const std::lock_guard guard(mutex_);
  return brain_.request({{"op", "counts"}, {"best", 1}});
}

RemoteScheduler::RemoteScheduler(int rank, int ranks, const std::string& address) : line_(rank, ranks) {
  if (!line_.connect(address)) throw Error(ExitCode::kPeerFailed, "rank " + std::to_string(rank) + " cannot reach rank 0 by TCP to ask it for trials: is there a firewall between the hosts?");
}

json RemoteScheduler::ask(const json& request) {
  line_.send(0, distributed::Lifeline::Kind::kMessage, request.dump());
  while (true) {
    std::vector<pollfd> waits;
    line_.add_to(waits);
    ::poll(waits.data(), waits.size(), 1000);
    distributed::report_progress();
    for (const auto& event : line_.receive()) {
      if (event.kind == distributed::Lifeline::Kind::kEnd) throw Error(ExitCode::kPeerFailed, "rank 0, which hands out the trials, is gone");
      if (event.kind != distributed::Lifeline::Kind::kMessage) continue;
      json answer = json::parse(event.payload);
      if (answer.contains("trouble")) throw Error(static_cast<ExitCode>(answer["code"].get<int>()), answer["trouble"].get<std::string>());
      return answer;
    }
  }
}

}  // namespace muster::launcher
