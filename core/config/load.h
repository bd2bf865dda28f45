#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"

namespace muster::config {

struct EarlierValue;  // stored.h

// An experiment with every value in place, and where each one came from.
struct LoadedExperiment {
  Experiment experiment;           // fully resolved: exactly one model, every field of its blocks set
  std::string source_path;         // as given to load_experiment
  std::vector<std::string> notes;  // settings that have no effect, one sentence each; worth printing, no reason to stop

  // Dotted field path -> "file:line", "--set path=value" or "preset NAME". Fields that are not in here have their
  // default. Elements of repeated fields are also listed as "data.modalities[1]". Ask where() instead of reading this.
  std::map<std::string, std::string> origins;
};

// Reads an experiment file (text format of muster.config.Experiment) and resolves it:
//     defaults.txtpb  <-  preset  <-  the file  <-  overrides, in their order.
// A repeated field replaces the one before it. data.path becomes absolute: against the file's folder, or against the
// current directory when it comes from an override. An empty data.path, data.split.test_group, preset or name counts as
// not given. `overrides` are "training.epochs=3": lists take commas, a message takes "{...}" or, to remove it, nothing.
//
// Throws one Error(kBadConfig) that names ALL problems of the file, the overrides and the values together.
// Files that muster wrote itself are read by load_stored_experiment (stored.h) instead.
LoadedExperiment load_experiment(const std::string& path, const std::vector<std::string>& overrides);

// Names that `preset:` accepts, sorted.
std::vector<std::string> preset_names();

// The preset as text format, its comments included. Throws Error(kBadConfig) that lists the valid names.
std::string preset_text(const std::string& name);

// defaults.txtpb without the blocks of models other than `model` ("": of all models).
Experiment default_experiment(const std::string& model);

// The values of defaults.txtpb for an experiment with the model and the data source of `experiment`.
Experiment defaults_for(const Experiment& experiment);

// What load_experiment and load_stored_experiment share. `earlier`: of a stored experiment, whose missing values are
// those of its results version and whose preset is not applied again; null for a file that a user wrote.
LoadedExperiment resolve_experiment(const std::string& text, const std::string& path,
                                    const std::vector<std::string>& overrides,
                                    const std::vector<EarlierValue>* earlier);

// Where the value of a dotted field path ("training.batch_size", "data.modalities[1]") came from: "file:line",
// "--set path=value", "preset NAME" or "default". For errors that are found later, when the data is at hand.
std::string where(const LoadedExperiment& loaded, const std::string& field_path);

// Runs `work`, which judges values by what is found later. An Error(kBadConfig) from it is thrown again: a line that
// starts with a field's path ("training.threads: ...") has the place of that value in front, unless it is a default.
void with_places(const LoadedExperiment& loaded, const std::function<void()>& work);

}  // namespace muster::config
