#pragma once

#include <string>
#include <vector>

namespace muster::config {

// Everything that is wrong with one experiment, reported together.
class Problems {
 public:
  // `path` is the experiment file as the user named it.
  explicit Problems(std::string path) : path_(std::move(path)) {}

  // At a line of the file, from 1.
  void at_line(int line, const std::string& message);
  // At any place as where() writes it: "file:line", "--set ...", "preset ...", "default".
  void at(const std::string& place, const std::string& message);

  bool empty() const { return problems_.empty(); }
  const std::string& path() const { return path_; }

  // Throws Error(kBadConfig) "path: N problems:" and a line "place: message" for each: those of the file by line
  // number, then the others in the order they were found. Beyond 50 only their number is given. No problem: returns.
  void throw_if_any() const;

 private:
  struct Problem {
    int line;  // 0: not in the file
    std::string place;
    std::string message;
  };
  std::string path_;
  std::vector<Problem> problems_;
};

}  // namespace muster::config
