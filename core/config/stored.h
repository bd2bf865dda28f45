#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"
#include "core/config/load.h"

// Experiments that muster wrote itself, perhaps an earlier version: a run's config.txtpb, the copy of it in each
// checkpoint, a search's base.txtpb. There is one policy for reading them:
//   * A field that is missing has the value that it had when the file was written: that of earlier_values() for the
//     file's results version, otherwise its default. Presets are not applied again.
//   * An unknown field comes from a newer muster. The file is refused, and the message names the field.
//   * Everything else is checked as load_experiment checks it.
namespace muster::config {

// Increased whenever a change of the program changes what the same experiment gives, beyond rounding or, if
// reproducible, at all. Every stored experiment names the version it was written by in a header line
// "# muster-results-version: N"; a file without that line is of version 1.
constexpr uint32_t kResultsVersion = 3;
// The oldest version whose runs continue with the same results: what has changed since has a field in earlier_values(),
// or is for the model to tell (ModelSpec::changed_since).
constexpr uint32_t kOldestContinuedVersion = 1;
constexpr char kResultsVersionKey[] = "muster-results-version:";

// A field that did not exist, or had another default, in results versions before `since`: runs of those versions had
// `value`, in text format.
struct EarlierValue {
  uint32_t since;
  std::string path;
  std::string value;
};

// A new field, or a new default, whose value in defaults.txtpb is not how earlier versions behaved needs a line here,
// and a new kResultsVersion. A new field whose default keeps the behaviour needs neither.
const std::vector<EarlierValue>& earlier_values();

// The defaults of results version `version` for an experiment with the blocks of `experiment`.
Experiment defaults_of_version(const Experiment& experiment, uint32_t version,
                               const std::vector<EarlierValue>& earlier = earlier_values());

// The results version that the header of a stored experiment names. Throws Error(kBadConfig) when it is no number.
uint32_t results_version_of(const std::string& text, const std::string& path);

// Reads a stored experiment by the policy above; `overrides` as in load_experiment. Throws Error(kIo) when there is no
// such file or it cannot be read, Error(kBadConfig) with all problems of its content.
LoadedExperiment load_stored_experiment(const std::string& path, const std::vector<std::string>& overrides = {});

// The same for text that has been read already; `path` is for messages.
Experiment parse_stored_experiment(const std::string& text, const std::string& path,
                                   const std::vector<EarlierValue>& earlier = earlier_values());

// Whether muster wrote this experiment file itself: it names a results version, or lies in the directory of a run.
bool is_stored_experiment(const std::string& path);

// `experiment` as load_experiment reads it or, if muster wrote the file itself, as load_stored_experiment does.
LoadedExperiment load_any_experiment(const std::string& path, const std::vector<std::string>& overrides = {});

// A value that is not the same in two experiments, in text format; "(not set)" where it is absent.
struct Difference {
  std::string path;
  std::string before;
  std::string after;
};

// All values that differ, in the order of the schema.
std::vector<Difference> differences(const Experiment& before, const Experiment& after);

// Of these the ones that only the program has changed: fields of earlier_values() that `stored` has from an earlier
// version, and of which `asked` has today's default. What was begun with them continues with them.
std::vector<Difference> earlier_choices(const Experiment& stored, const Experiment& asked);

// Whether a run may continue with another value there: it changes only the number of steps, only rounding (as another
// number of ranks does), or nothing. data.path is such a field because the content of the data is compared separately.
bool may_change_in_a_run(const std::string& path, const Experiment& experiment);

}  // namespace muster::config
