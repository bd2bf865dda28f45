#include "launcher/study/grid.h"

#include <fmt/format.h>

#include "base/text.h"

namespace muster::launcher {

using nlohmann::json;

namespace {

// A cell of another job may end, or that job may die, at any time.
constexpr auto kLookAgain = std::chrono::seconds(10);

}  // namespace

Grid::Grid(const StudyDirectory& directory, ProgressLine& progress) : directory_(directory), progress_(progress) {
  const auto& cells = directory_.spec().cells;
  for (size_t cell = cells.size(); cell-- > 0;)
    if (directory_.is_trained(cells[cell]))
      ++done_;
    else
      open_.push_back(cell);
  progress_.note(fmt::format("{} runs: {} done, {} to do", cells.size(), done_, open_.size()));
}

json Grid::ask(const json& request) {
  const std::string op = request["op"];
  if (op == "next") return next();
  if (op == "ended") ended(request["cell"], request["state"], request["reason"]);
  if (op == "report") return {{"stop", stopping_}};
  if (op == "stopping") stopping_ = true;
  return json::object();
}

json Grid::next() {
  if (stopping_) return {{"do", running_ ? "wait" : "end"}};
  if (open_.empty() && !elsewhere_.empty() && Clock::now() - looked_ > kLookAgain) {
    looked_ = Clock::now();
    open_.swap(elsewhere_);
  }
  // Another job may have trained it since.
  for (; !open_.empty() && directory_.is_trained(directory_.spec().cells[open_.back()]); open_.pop_back()) ++done_;
  if (open_.empty()) return {{"do", elsewhere_.empty() && running_ == 0 ? "end" : "wait"}};
  const size_t cell = open_.back();
  open_.pop_back();
  ++running_;
  return {{"do", "train"}, {"cell", cell}};
}

void Grid::ended(size_t cell, const std::string& state, const std::string& reason) {
  --running_;
  const std::string& name = directory_.spec().cells[cell].folder;
  if (state == "stopped") return;
  if (state == "elsewhere") {
    if (elsewhere_.empty()) looked_ = Clock::now();
    elsewhere_.push_back(cell);
    // The second time it may be something else that will not pass.
    progress_.note(name + ": " + (met_elsewhere_.insert(cell).second ? "another job is training it" : reason));
    return;
  }
  ++here_;
  if (state == "failed") {
    failures_.push_back({cell, reason});
    stop_when_all_fail("study", "runs", here_, done_, name, reason);
  } else {
    ++done_;
  }
  const auto left = static_cast<double>(open_.size()) + static_cast<double>(running_) / 2;
  const double each = std::chrono::duration<double>(Clock::now() - started_).count() / static_cast<double>(here_);
  if (state == "failed") progress_.note(name + ": failed: " + reason);
  progress_.show(fmt::format("{}  ({}/{} done, {} failed, {} running; left {})", name, done_,
                             directory_.spec().cells.size(), failures_.size(), running_, duration_text(each * left)));
}

}  // namespace muster::launcher
