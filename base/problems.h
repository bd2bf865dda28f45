#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace muster {

// One thing that is wrong with an input, thrown by the step that found it: see Problems::attempt().
class Problem : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Everything that is wrong with one input, so that a person can fix it in one go.
class Problems {
 public:
  // `path` is the input as the user named it; problems beyond `limit` are only counted.
  explicit Problems(std::string path, size_t limit = 50) : path_(std::move(path)), limit_(limit) {}

  // `message` says where it is.
  void add(const std::string& message) { insert(0, message); }
  // At a line of the file, from 1.
  void at_line(int line, const std::string& message);
  // At a place such as "file:line" (of this file or another one), "--set ..." or "default".
  void at(const std::string& place, const std::string& message);
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

  bool empty() const { return count_ == 0; }
  const std::string& path() const { return path_; }
  // "place: message" for each: those with a line of the file by line, then the others in the order they were found;
  // last, when there are more than the limit, "... and N more".
  std::vector<std::string> lines() const;
  // Throws Error(code) "path: N problems:" and the lines. Without a problem: returns.
  void throw_if_any(ExitCode code) const;

 private:
  void insert(int line, std::string text);

  std::string path_;
  size_t limit_;
  std::vector<std::pair<int, std::string>> listed_;  // by line; those without come last
  int64_t count_ = 0;
};

}  // namespace muster
