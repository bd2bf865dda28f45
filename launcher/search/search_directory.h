#pragma once

#include <cstdint>
#include <string>

#include "launcher/search/jobs.h"
#include "launcher/search/spec.h"

namespace muster::launcher {

// The folder of a search: search.txtpb and base.txtpb as they were resolved, Optuna's journal.log, trials/<number>/,
// each the directory of a run, and jobs/ (jobs.h).
class SearchDirectory {
 public:
  // Makes it, or joins an existing one. Throws Error(kBadConfig) when that holds another search (naming what differs),
  // Error(kUsage) when it is something else, Error(kIo).
  SearchDirectory(const std::string& path, const SearchSpec& spec);
  // Opens an existing one. Throws Error(kUsage) when it is none.
  explicit SearchDirectory(const std::string& path);

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  // What it was made for. Every job trains this, even if the spec's file or the base experiment has changed since.
  const SearchSpec& spec() const { return spec_; }
  // Any Optuna storage: the spec's, or the journal in here.
  std::string storage() const;

  // The jobs at work on it, of which there may be several.
  Jobs jobs() const { return Jobs(file("jobs")); }

  // trials/000012.
  std::string trial(int64_t number) const;
  // The run of a repeat of a trial: the trial's own directory where it is trained once.
  std::string run(int64_t number, uint32_t repeat) const;
  uint32_t repeats() const;

  // The journal says which trials there are and how they ended; so do their directories. A record may be lost (a disk
  // that was full, a machine that went down), a directory may be of another search. Nothing is judged twice:
  //
  // Before a run is trained: true if it has its result already, which counts. Throws Error(kIo) when it was trained
  // with other values. What a finished trial has left without a result (it was pruned, or failed) is removed.
  bool recover(const std::string& run, const config::Experiment& experiment) const;
  // Throws Error(kIo) when the results in the directory of a complete trial are not the value of the journal.
  void require_value(int64_t number, double value) const;
  // Removes from a trial that has ended what was needed to resume it: all but settings, metrics, result, predictions
  // and, where they are to be kept, weights/best.safetensors.
  void tidy(int64_t number, bool keep_weights) const;

 private:
  void join(const SearchSpec& spec);

  std::string path_;
  SearchSpec spec_;
};

}  // namespace muster::launcher
