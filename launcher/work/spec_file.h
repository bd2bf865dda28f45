#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <vector>

#include "base/problems.h"
#include "core/config/load.h"
#include "core/config/parse.h"

namespace muster::launcher {

// A text file that says what to do with a base experiment: a search, a study. Collects ALL that is wrong with it, each
// with its line.
class SpecFile {
 public:
  // Reads the file into `message`, an empty one.
  SpecFile(const std::string& path, google::protobuf::Message& message);

  // Something is wrong with a field ("budget.trials", "parameters[2].path").
  void problem(const std::string& field, const std::string& message) { problems_.at(place(field), message); }
  // False when something in the file could not be read: what is missing may be there.
  bool is_whole() const { return parsed_.complete; }

  // Makes the paths of data in overrides absolute: they are relative to the file's folder.
  void resolve_paths(google::protobuf::RepeatedPtrField<std::string>& overrides) const;

  // The base experiment of the field `base`, and what `set` (overrides, the field of that name) makes of it. `base`
  // becomes absolute.
  void read_base(std::string& base, const std::vector<std::string>& set);
  bool base_is_good() const { return base_is_good_; }
  // The base experiment as it stands, without `set`.
  const config::Experiment& base() const { return base_; }
  // With overrides. Throws as load_experiment.
  config::Experiment varied(const std::vector<std::string>& overrides) const {
    return config::load_experiment(base_path_, overrides).experiment;
  }
  // What is wrong with the base experiment with these overrides, in one line; empty: nothing.
  std::string refusal(const std::vector<std::string>& overrides) const;

  // Throws one Error(kBadConfig) that names everything.
  void throw_if_any() const { problems_.throw_if_any(ExitCode::kBadConfig); }

 private:
  std::string place(const std::string& field) const;

  const std::string path_;
  Problems problems_;
  config::Parsed parsed_;  // where each field stands
  std::string base_path_;
  config::Experiment base_;
  bool base_is_good_ = false;
};

// "training.epochs" of "training.epochs=3".
std::string path_of_override(const std::string& text);

// The message in text format; equal messages give equal bytes. proto_file: where its schema is.
std::string spec_text(const google::protobuf::Message& message, const std::string& proto_file);

}  // namespace muster::launcher
