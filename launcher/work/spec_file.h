#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <vector>

#include "base/problems.h"
#include "core/config/parse.h"
#include "core/config/stored.h"

namespace muster::launcher {

// A text file that says what to do with a base experiment: a search, a study. Collects ALL that is wrong with it, each
// with its line.
class SpecFile {
 public:
  // Reads the file into `message`, an empty one that outlives this.
  SpecFile(const std::string& path, google::protobuf::Message& message);

  // Something is wrong with a field ("budget.trials", "parameters[2].path").
  void problem(const std::string& field, const std::string& message) { problems_.at(place(field), message); }
  // False when something in the file could not be read: what is missing may be there.
  bool is_whole() const { return parsed_.complete; }
  // The name of what has none: the file's name.
  std::string default_name() const;

  // A path relative to the file's folder, made absolute.
  std::string absolute(const std::string& path) const;
  // The same for the paths of data in overrides.
  void resolve_paths(google::protobuf::RepeatedPtrField<std::string>& overrides) const;

  // The base experiment of the field `base`, which becomes absolute, and what `set` (overrides, the field of that name)
  // makes of it.
  void read_base(std::string& base, const google::protobuf::RepeatedPtrField<std::string>& set);
  // Whether the base experiment can be read, without `set`.
  bool base_is_good() const { return base_is_good_; }
  // The base experiment with `set`; empty unless both are good.
  const config::Experiment& base() const { return base_; }
  // `set`, then more overrides.
  std::vector<std::string> after_set(std::vector<std::string> more) const;

  // A whole number that is given must not be less than this.
  void require_at_least(const std::string& field, uint32_t least);
  // The base experiment must have as many folds as the number in `field`, and leave the choice of the fold open.
  void require_folds(const std::string& field, uint32_t folds);

  // The base experiment with these overrides alone. Throws as load_any_experiment.
  config::Experiment varied(const std::vector<std::string>& overrides) const {
    return config::load_any_experiment(base_path_, overrides).experiment;
  }
  // What is wrong with the base experiment with these overrides, in one line; empty: nothing.
  std::string refusal(const std::vector<std::string>& overrides) const;

  // Throws one Error(kBadConfig) that names everything.
  void throw_if_any() const { problems_.throw_if_any(ExitCode::kBadConfig); }

 private:
  std::string place(const std::string& field) const;

  const std::string path_;
  const google::protobuf::Message& message_;
  Problems problems_;
  config::Parsed parsed_;  // where each field stands
  std::string base_path_;
  std::vector<std::string> set_;
  config::Experiment base_;
  bool base_is_good_ = false;
};

// Whether a setting of an experiment is a path: data.path, encoders[0].path ...
bool names_a_file(const std::string& path);

// "training.epochs" of "training.epochs=3".
std::string path_of_override(const std::string& text);

// Whether a value of the experiment says how a process computes, not what: it is the same for all that a job trains.
bool is_of_process(const std::string& path);

// Sets the fields that are missing. defaults: a message of that type in text format.
void set_missing(google::protobuf::Message& message, const std::string& defaults);

// The message in text format; equal messages give equal bytes. proto_file: where its schema is.
std::string spec_text(const google::protobuf::Message& message, const std::string& proto_file);

}  // namespace muster::launcher
