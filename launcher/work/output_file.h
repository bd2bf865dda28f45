#pragma once

#include <string>
#include <vector>

namespace muster::launcher {

enum class OutputKind { kPredictions, kDataset, kExperiment, kStudy, kExport, kRobustness };

// Refuses, before any work is done, an output file that a command must not write: one of its `inputs`, by whatever name
// or link; a file of another kind than the command writes; a symbolic link; a file in the directory of a run, search or
// study other than `own` (empty: none), or there what the run itself keeps. Throws Error(kUsage) that says
// which.
void require_output(const std::string& path, OutputKind kind, const std::vector<std::string>& inputs,
                    const std::string& own = "");

// The same for a folder of files.
void require_output_folder(const std::string& path, const std::string& own);

}  // namespace muster::launcher
