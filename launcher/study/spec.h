#pragma once

#include <string>
#include <vector>

#include "core/config/load.h"
#include "launcher/study/study.pb.h"

namespace muster::launcher {

// One run of a study.
struct Cell {
  int variant;  // index into StudySpec::variants
  int64_t seed;
  int fold;            // -1: the split as it stands
  std::string folder;  // in the study's directory: "cells/no_avel/seed-1-fold-0"
};

// A study as its file asks for it, checked against its base experiment.
struct StudySpec {
  Study study;                    // fully resolved, but for `metrics`, which may be empty
  std::vector<Variant> variants;  // the base first, then the study's
  // In the order of training: one whole seed after another, so that what there is can be compared at any time.
  std::vector<Cell> cells;

  // What a cell trains. Throws as load_experiment.
  config::LoadedExperiment experiment(const Cell& cell) const;
};

// Reads a study file (text format of muster.launcher.Study). Throws one Error(kBadConfig) that names ALL problems
// together, with file and line. overrides: what is added to `set`.
StudySpec load_study(const std::string& path, const std::vector<std::string>& overrides = {});

}  // namespace muster::launcher
