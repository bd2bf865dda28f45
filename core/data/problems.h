#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace muster::data {

// One thing that is wrong with a file: where in the file and what, without the file's name.
class Problem : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Everything that is wrong with a file, so that a person can mend it in one go.
class Problems {
 public:
  static constexpr size_t max_listed = 20;

  void add(const std::string& problem) {
    if (listed_.size() < max_listed) listed_.push_back(problem);
    ++count_;
  }

  // Runs `step`; a Problem that it throws is added. Returns whether none was thrown.
  template <typename Step>
  bool attempt(Step&& step) {
    try {
      step();
      return true;
    } catch (const Problem& problem) {
      add(problem.what());
      return false;
    }
  }

  int64_t count() const { return count_; }

  // The first max_listed, then "and N more".
  std::vector<std::string> lines() const {
    std::vector<std::string> result = listed_;
    const int64_t more = count_ - static_cast<int64_t>(listed_.size());
    if (more > 0) result.push_back("and " + std::to_string(more) + " more");
    return result;
  }

 private:
  std::vector<std::string> listed_;
  int64_t count_ = 0;
};

}  // namespace muster::data
