#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/config/load.h"
#include "launcher/search/search.pb.h"

namespace muster::launcher {

// A search as its file asks for it, checked against the experiment that it varies.
struct SearchSpec {
  Search search;            // fully resolved: every field that has a default is set
  config::Experiment base;  // what every trial has: the base experiment with `set`, budget.epochs and objective.metric
};

// Reads a search file (text format of muster.launcher.Search). Throws one Error(kBadConfig) that names ALL problems
// together, with file and line: of the spec, of the base experiment, parameters that the experiment does not have, and
// bounds and choices that it refuses.
SearchSpec load_search(const std::string& path);

// Reads a search directory's search.txtpb back, perhaps of an earlier muster: fields it lacks get their defaults.
// Throws likewise; an unknown field is of a newer muster and is named.
Search parse_search(const std::string& path);

// The search in text format, as its directory keeps it; equal searches give equal bytes.
std::string resolved_text(const Search& search);

// A trial's values as overrides ("optimizer.learning_rate=0.001"), exact to the last bit.
std::vector<std::string> overrides_of(const nlohmann::json& values);

// The space, sampler and pruner as the Optuna process takes them (optuna_process.py).
nlohmann::json optuna_space(const Search& search);
nlohmann::json optuna_sampler(const Search& search);
nlohmann::json optuna_pruner(const Search& search);

}  // namespace muster::launcher
