#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/safetensors.h"
#include "core/models/parameters.h"

namespace muster::models {

// A folder as Hugging Face lays it out: config.json, model.safetensors (or several files and
// model.safetensors.index.json), and for speech preprocessor_config.json. Nothing in it is trusted. Opening reads the
// JSON and the headers only. The weights' files stay open: what load() reads is what was checked, whatever appears
// under their names meanwhile. Files may be links, as in Hugging Face's cache; names in the index are of files in the
// folder itself.
class PretrainedFolder {
 public:
  // Throws Error(kBadData) for what is damaged, contradictory or outside the folder, and Error(kIo) for what is missing
  // or cannot be read; where only pytorch_model.bin is there, it names the converter.
  explicit PretrainedFolder(const std::string& path);

  // What a folder without weights says: a config.json of any name and, beside it, preprocessor_config.json. An encoder
  // made from it has starting values only: check() finds everything good, load() throws Error(kInternal). Throws as the
  // constructor.
  static PretrainedFolder without_weights(const std::string& config_path);

  // What encoders[].path names: a folder, or a config.json itself.
  static PretrainedFolder open(const std::string& path);

  const std::string& path() const { return path_; }
  bool has_weights() const { return !files_.empty(); }
  const nlohmann::json& config() const { return config_; }
  const nlohmann::json& preprocessor() const { return preprocessor_; }  // an empty object where there is none
  const std::string& config_path() const { return config_path_; }

  // Members of config.json. `fallback` where the member is missing or null. Throw Error(kBadData) that names file and
  // member for another type or a value outside the bounds.
  int64_t integer(const char* name, int64_t fallback, int64_t least, int64_t most) const;
  double number(const char* name, double fallback, double least, double most) const;
  bool boolean(const char* name, bool fallback) const;
  std::string text(const char* name, const std::string& fallback) const;
  std::vector<int64_t> integers(const char* name, const std::vector<int64_t>& fallback, int64_t least,
                                int64_t most) const;
  // Throws Error(kBadData): "FILE: NAME: VALUE is not supported; ADVICE".
  [[noreturn]] void refuse(const char* name, const std::string& advice) const;
  // Throws Error(kBadData) that lists the members of config.json that are neither `known` nor among those of every
  // model that change nothing in an encoder (names of labels, settings of text generation ...): whoever wrote them
  // meant something by them. A member that is null, false, or empty asks for nothing.
  void refuse_unknown(const std::vector<std::string>& known) const;

  struct Names {
    std::string parameter_prefix;                // of the model's parameters: "encoders.audio."
    std::vector<std::string> accepted_prefixes;  // that tensors in the files may have: "wavlm.", "bert."
    // Other spellings of a name's ending: {"parametrizations.weight.original0", "weight_g"}.
    std::vector<std::pair<std::string, std::string>> spellings;
    // Beginnings of names of what is not needed (heads), which is said and not loaded.
    std::vector<std::string> ignored;
    // Parameters that may be missing, and keep their starting values: the sum's weights of `weighted_layers`.
    std::vector<std::string> optional;
  };
  // What load() would say: checks names and shapes of `specs` (those of this encoder) against the files, before
  // anything is allocated. Throws Error(kBadData) that lists every missing and unknown tensor and every wrong shape or
  // dtype.
  void check(const std::vector<ParameterSpec>& specs, const Names& names) const;
  // Reads the values straight into the model's parameters: float32, float64, float16 or bfloat16, converted to their
  // dtype. Throws as check(), and Error(kBadData) for a value that is not finite, by tensor name.
  void load(const std::vector<ParameterSpec>& specs, const Names& names, Parameters& parameters) const;
  // Tensors that are there and not needed, for a note.
  std::vector<std::string> ignored(const Names& names) const;

  // SHA-256 over the SHA-256 of config.json, preprocessor_config.json and the weights' files, in this order. Reads all
  // of them.
  std::string content_hash() const;

 private:
  using Entry = checkpoints::SafetensorsHeader::Entry;
  struct Place {
    size_t file;         // in files_
    const Entry* entry;  // in its header
  };

  PretrainedFolder() = default;
  void read_config(const std::string& config_path);
  void open_weights();
  void open_indexed(const std::string& index_path);
  // The tensor of each spec in its order (an empty name where an optional one is missing), after check().
  std::vector<std::string> matched(const std::vector<ParameterSpec>& specs, const Names& names) const;
  [[noreturn]] void refuse_value(const char* name, const std::string& expected) const;
  // nullptr where it is missing or null.
  const nlohmann::json* member(const char* name) const;

  std::string path_, config_path_;
  nlohmann::json config_, preprocessor_ = nlohmann::json::object();
  std::vector<std::pair<std::string, std::string>> json_hashes_;  // name, SHA-256
  std::vector<std::shared_ptr<checkpoints::SafetensorsReader>> files_;
  std::map<std::string, Place> tensors_;  // of all files
};

}  // namespace muster::models
