#pragma once

#include <string>

#include "core/run/results.h"
#include "launcher/study/spec.h"

namespace muster::launcher {

// The folder of a study: cells/<variant>/seed-<s>[-fold-<f>], each the directory of a run; the tables beside them. It
// is nothing but its runs: a cell is done when its run is, and several jobs may work in it at once.
class StudyDirectory {
 public:
  // Makes the folder where it is not there. Throws Error(kBadConfig) when runs in it were trained with other settings
  // than the study now asks for, naming one and what differs; Error(kIo).
  StudyDirectory(const std::string& path, StudySpec spec);

  const std::string& path() const { return path_; }
  const StudySpec& spec() const { return spec_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string run(const Cell& cell) const { return path_ + "/" + cell.folder; }

  bool is_trained(const Cell& cell) const;
  // Of a trained cell. Throws Error(kBadData) when it cannot be understood, or has no test split.
  run::RunResult result(const Cell& cell) const;
  // Removes from a finished run what was needed to resume it.
  void tidy(const Cell& cell) const;

  // Throws Error(kBadData) when finished runs on the same data path were trained on different data, naming two.
  void require_same_data() const;

 private:
  std::string path_;
  StudySpec spec_;
};

}  // namespace muster::launcher
