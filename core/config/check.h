#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/problems.h"
#include "core/config/load.h"

namespace muster::config {

// Far beyond any use, and small enough to refuse a slip of the keyboard before it asks for terabytes.
constexpr uint32_t kWidest = 65536;
constexpr uint32_t kDeepest = 1024;

// Judges values of an experiment by their dotted paths. What is wrong becomes a problem at the place that the value
// came from; values that are known to be unusable are not judged again.
class Checker {
 public:
  // All must outlive the checker. See check_experiment.
  Checker(const LoadedExperiment& loaded, const std::set<std::string>& unusable, bool complete, Problems& problems)
      : loaded_(loaded), unusable_(unusable), complete_(complete), problems_(problems) {}

  // The same for paths relative to a block.
  Checker in(const std::string& block) const;

  const Experiment& experiment() const { return loaded_.experiment; }
  // Where a value came from, as config::where.
  std::string place(const std::string& path) const { return where(loaded_, full(path)); }
  bool is_unusable(const std::string& path) const { return unusable_.count(full(path)) != 0; }
  // The value in text format; "not set" where it is absent.
  std::string value(const std::string& path) const;
  // A field of a number type; 0 where it is not set.
  double number(const std::string& path) const;

  // A problem of the values at these paths together. It is placed at the value most likely to be the mistake: an
  // override rather than the file, the file rather than a preset or a default, and among equals the first.
  void fail(const std::vector<std::string>& paths, const std::string& message) const;
  // Something required that is nowhere: placed at the nearest block that is there.
  void fail_absent(const std::string& path, const std::string& message) const;

  // "PATH must be WANTED, not VALUE."
  void require(bool right, const std::string& path, const std::string& wanted) const;
  void share(const std::string& path) const;                              // at least 0 and less than 1
  void positive(const std::string& path) const;                           // finite
  void not_negative(const std::string& path) const;                       // finite
  void count(const std::string& path, uint32_t largest = kWidest) const;  // from 1

 private:
  std::string full(const std::string& path) const { return block_.empty() ? path : block_ + "." + path; }

  const LoadedExperiment& loaded_;
  const std::set<std::string>& unusable_;
  bool complete_;
  Problems& problems_;
  std::string block_;
};

// Adds a problem for every value that no data could make right: ranges, combinations, missing blocks. `loaded` is
// resolved. `unusable` holds paths whose value is already known to be wrong: they and what is compared with them are
// not looked at. `complete` is false when parts of the file were not understood, so that something seemingly missing
// may be among them.
void check_experiment(const LoadedExperiment& loaded, const std::set<std::string>& unusable, bool complete,
                      Problems& problems);

// The part of it that concerns the block of the experiment's model alone.
void check_model(const Checker& check);

// One sentence for each value that was given, differs from its default and has no effect with the other values.
std::vector<std::string> ineffective_settings(const LoadedExperiment& loaded, const Experiment& defaults);

}  // namespace muster::config
