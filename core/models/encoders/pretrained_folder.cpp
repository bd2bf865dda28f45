#include "core/models/encoders/pretrained_folder.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/problems.h"
#include "base/sha256.h"
#include "base/text.h"

namespace muster::models {
namespace {

constexpr uint64_t kLargestFolderJson = 64 << 20;  // bytes
constexpr size_t kMostWeightFiles = 500;           // each stays open
constexpr size_t kListedTensors = 100;
constexpr int64_t kBlockOfValues = 1 << 20;

// Members that every model of transformers may have and that change nothing in an encoder's hidden states.
const std::set<std::string>& members_without_effect() {
  static const std::set<std::string> names{
      // Where it comes from and how it is run.
      "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "_num_labels",
      "architectures", "attn_implementation", "chunk_size_feed_forward", "dtype", "gradient_checkpointing", "language",
      "model_type", "name_or_path", "output_attentions", "output_hidden_states", "output_past", "return_dict",
      "tf_legacy_loss", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_bfloat16",
      "use_cache",
      // Heads and fine-tuning.
      "classifier_dropout", "finetuning_task", "id2label", "initializer_range", "label2id", "num_labels",
      "problem_type", "task_specific_params", "tie_encoder_decoder", "tie_word_embeddings",
      // Ids that the data file holds already, or that only generation needs.
      "bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id",
      "forced_eos_token_id", "mask_token_id", "pad_token_id", "prefix", "sep_token_id", "unk_token_id",
      // Generation.
      "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
      "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "length_penalty", "max_length", "min_length",
      "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
      "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature",
      "top_k", "top_p", "typical_p"};
  return names;
}

bool has_entry(const std::string& path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0;  // also a link that leads nowhere: opening it says so
}

// A file of the folder itself.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos && name.find('\0') == name.npos;
}

bool is_floating(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16;
}

// A member's value in a message.
std::string shown(const nlohmann::json& value) {
  return in_quotes(value.is_string() ? value.get<std::string>() : json_text(value));
}

std::string shape_list(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

bool starts_with(const std::string& text, const std::string& beginning) {
  return text.compare(0, beginning.size(), beginning) == 0;
}

std::string without_prefix(const std::string& name, const std::string& prefix) {
  return starts_with(name, prefix) ? name.substr(prefix.size()) : name;
}

// `name` with another ending, where it has the first of them as whole parts of its dotted path.
std::optional<std::string> respelled(const std::string& name, const std::string& from, const std::string& to) {
  if (name.size() < from.size() || name.compare(name.size() - from.size(), from.size(), from) != 0) return std::nullopt;
  const size_t begin = name.size() - from.size();
  if (begin > 0 && name[begin - 1] != '.') return std::nullopt;
  return name.substr(0, begin) + to;
}

// Place of each spec by its name in files, without muster's prefix.
using NamedPlaces = std::map<std::string, size_t>;

NamedPlaces named_places(const std::vector<ParameterSpec>& specs, const PretrainedFolder::Names& names) {
  NamedPlaces places;
  for (size_t i = 0; i < specs.size(); ++i) places.emplace(without_prefix(specs[i].name, names.parameter_prefix), i);
  return places;
}

// The names that a tensor of a file may mean: its own, and without what stands before the encoder in a larger model.
std::vector<std::string> meanings(const std::string& tensor, const PretrainedFolder::Names& names) {
  std::vector<std::string> all{tensor};
  for (const auto& prefix : names.accepted_prefixes)
    if (!prefix.empty() && starts_with(tensor, prefix)) all.push_back(tensor.substr(prefix.size()));
  return all;
}

std::optional<size_t> place_of(const std::string& tensor, const NamedPlaces& places,
                               const PretrainedFolder::Names& names) {
  const auto find = [&](const std::optional<std::string>& name) -> std::optional<size_t> {
    if (!name) return std::nullopt;
    const auto found = places.find(*name);
    return found == places.end() ? std::nullopt : std::optional(found->second);
  };
  for (const auto& name : meanings(tensor, names)) {
    if (const auto place = find(name)) return place;
    for (const auto& [one, other] : names.spellings) {
      if (const auto place = find(respelled(name, one, other))) return place;
      if (const auto place = find(respelled(name, other, one))) return place;
    }
  }
  return std::nullopt;
}

bool is_ignored(const std::string& tensor, const PretrainedFolder::Names& names) {
  for (const auto& name : meanings(tensor, names))
    for (const auto& beginning : names.ignored)
      if (starts_with(name, beginning)) return true;
  return false;
}

}  // namespace

PretrainedFolder::PretrainedFolder(const std::string& path) : path_(path) {
  const auto require = [&](bool good, const std::string& problem) {
    if (!good)
      throw Error(ExitCode::kIo,
                  fmt::format("{}: {}. An encoder's path is a folder as Hugging Face lays it out, with config.json and "
                              "model.safetensors",
                              printable(path), problem));
  };
  struct stat status;
  const bool found = ::stat(path.c_str(), &status) == 0;
  require(found || errno == EACCES, "there is no such folder");
  require(!found || S_ISDIR(status.st_mode), "is not a folder");
  require(!found || has_entry(path + "/config.json"), "holds no config.json");
  read_config(path + "/config.json");
  open_weights();
}

PretrainedFolder PretrainedFolder::open(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored) ? without_weights(path) : PretrainedFolder(path);
}

PretrainedFolder PretrainedFolder::without_weights(const std::string& config_path) {
  PretrainedFolder folder;
  folder.path_ = parent_of(config_path);
  folder.read_config(config_path);
  return folder;
}

void PretrainedFolder::read_config(const std::string& config_path) {
  config_path_ = config_path;
  const auto read = [&](const std::string& file, const char* name) {
    const std::string text = read_file(file, kLargestFolderJson);
    nlohmann::json value = parse_json(text);
    if (!value.is_object())
      throw Error(ExitCode::kBadData,
                  fmt::format("{}: is damaged: it is not a JSON object, or nests deeper than 100", printable(file)));
    json_hashes_.emplace_back(name, sha256_of(text));
    return value;
  };
  config_ = read(config_path, "config.json");
  const std::string preprocessor = path_ + "/preprocessor_config.json";
  if (has_entry(preprocessor)) preprocessor_ = read(preprocessor, "preprocessor_config.json");
}

void PretrainedFolder::open_weights() {
  const std::string single = path_ + "/model.safetensors", index = path_ + "/model.safetensors.index.json";
  if (has_entry(single)) {
    files_.push_back(std::make_shared<checkpoints::SafetensorsReader>(single));
    for (const auto& [name, entry] : files_.front()->header().tensors) tensors_.emplace(name, Place{0, &entry});
    if (tensors_.empty()) throw Error(ExitCode::kBadData, fmt::format("{}: holds no tensors", printable(single)));
  } else if (has_entry(index)) {
    open_indexed(index);
  } else if (has_entry(path_ + "/pytorch_model.bin") || has_entry(path_ + "/pytorch_model.bin.index.json")) {
    throw Error(ExitCode::kIo,
                fmt::format("{0}: its weights are pytorch_model.bin, a pickle, which is a program and not read here; "
                            "python importers/convert_weights.py {1} writes them as model.safetensors without running "
                            "it",
                            printable(path_), shell_quoted(path_)));
  } else {
    throw Error(ExitCode::kIo, fmt::format("{}: holds no model.safetensors", printable(path_)));
  }
}

void PretrainedFolder::open_indexed(const std::string& index_path) {
  const nlohmann::json index = require_json_object(index_path), map = member_of(index, "weight_map");
  if (!map.is_object() || map.empty())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: has no weight_map, which names the file of each tensor", printable(index_path)));
  std::map<std::string, std::set<std::string>> tensors_of;  // by file
  Problems problems(printable(index_path));
  for (const auto& [tensor, file] : map.items()) {
    if (!file.is_string())
      problems.add(
          fmt::format("tensor {}: its file must be text; it is {}", in_quotes(tensor), in_quotes(json_text(file))));
    else if (!is_plain_name(file.get<std::string>()))
      problems.add(fmt::format("tensor {}: {} is not the name of a file in this folder", in_quotes(tensor),
                               in_quotes(file.get<std::string>())));
    else
      tensors_of[file.get<std::string>()].insert(tensor);
  }
  if (tensors_of.size() > kMostWeightFiles)
    problems.add(fmt::format("names {} files, at most {} are read", tensors_of.size(), kMostWeightFiles));
  for (const auto& [file, tensors] : tensors_of)
    if (!has_entry(path_ + "/" + file))
      problems.add(fmt::format("names the file {}, which is not there", in_quotes(file)));
  problems.throw_if_any(ExitCode::kBadData);

  for (const auto& [file, tensors] : tensors_of) {
    files_.push_back(std::make_shared<checkpoints::SafetensorsReader>(path_ + "/" + file));
    const auto& there = files_.back()->header().tensors;
    for (const auto& tensor : tensors)
      if (there.count(tensor) == 0)
        problems.add(fmt::format("tensor {} is not in {}", in_quotes(tensor), in_quotes(file)));
    for (const auto& [tensor, entry] : there) {
      const auto [other, is_new] = tensors_.emplace(tensor, Place{files_.size() - 1, &entry});
      if (!is_new)
        problems.add(fmt::format("tensor {} is in {} and in {}", in_quotes(tensor),
                                 in_quotes(name_of(files_[other->second.file]->path())), in_quotes(file)));
      else if (tensors.count(tensor) == 0)
        problems.add(fmt::format("does not name tensor {} of {}", in_quotes(tensor), in_quotes(file)));
    }
  }
  problems.throw_if_any(ExitCode::kBadData);
}

const nlohmann::json* PretrainedFolder::member(const char* name) const {
  const auto found = config_.find(name);
  return found == config_.end() || found->is_null() ? nullptr : &*found;
}

void PretrainedFolder::refuse_value(const char* name, const std::string& expected) const {
  throw Error(ExitCode::kBadData, fmt::format("{}: {} must be {}; it is {}", printable(config_path_), name, expected,
                                              in_quotes(json_text(*member(name)))));
}

int64_t PretrainedFolder::integer(const char* name, int64_t fallback, int64_t least, int64_t most) const {
  const nlohmann::json* value = member(name);
  if (!value) return fallback;
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() ||
                     value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most)
    refuse_value(name, fmt::format("a whole number from {} to {}", least, most));
  return value->get<int64_t>();
}

double PretrainedFolder::number(const char* name, double fallback, double least, double most) const {
  const nlohmann::json* value = member(name);
  if (!value) return fallback;
  const double number = value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= least && number <= most)) refuse_value(name, fmt::format("a number from {} to {}", least, most));
  return number;
}

bool PretrainedFolder::boolean(const char* name, bool fallback) const {
  const nlohmann::json* value = member(name);
  if (value && !value->is_boolean()) refuse_value(name, "true or false");
  return value ? value->get<bool>() : fallback;
}

std::string PretrainedFolder::text(const char* name, const std::string& fallback) const {
  const nlohmann::json* value = member(name);
  if (value && !value->is_string()) refuse_value(name, "text");
  return value ? value->get<std::string>() : fallback;
}

std::vector<int64_t> PretrainedFolder::integers(const char* name, const std::vector<int64_t>& fallback, int64_t least,
                                                int64_t most) const {
  const nlohmann::json* value = member(name);
  if (!value) return fallback;
  std::vector<int64_t> numbers;
  bool good = value->is_array();
  for (size_t i = 0; good && i < value->size(); ++i) {
    const nlohmann::json& item = (*value)[i];
    good = item.is_number_integer() && item >= least && item <= most;
    if (good) numbers.push_back(item.get<int64_t>());
  }
  if (!good) refuse_value(name, fmt::format("a list of whole numbers from {} to {}", least, most));
  return numbers;
}

void PretrainedFolder::refuse(const char* name, const std::string& advice) const {
  const nlohmann::json* value = member(name);
  throw Error(ExitCode::kBadData, fmt::format("{}: {}; {}", printable(config_path_),
                                              value ? fmt::format("{}: {} is not supported", name, shown(*value))
                                                    : fmt::format("{} is missing", name),
                                              advice));
}

void PretrainedFolder::refuse_unknown(const std::vector<std::string>& known) const {
  std::vector<std::string> unknown;
  for (const auto& [name, value] : config_.items()) {
    const bool asks_for_nothing = value.is_null() || value == false ||
                                  ((value.is_structured() || value.is_string()) && (value.empty() || value == ""));
    if (asks_for_nothing || members_without_effect().count(name) > 0 ||
        std::find(known.begin(), known.end(), name) != known.end())
      continue;
    unknown.push_back(fmt::format("{}: {}", in_quotes(name), shown(value)));
  }
  if (!unknown.empty())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: what these members change in the encoder is not known: {}. Remove them if they change "
                            "nothing",
                            printable(config_path_), join_first(unknown, 20)));
}

std::vector<std::string> PretrainedFolder::matched(const std::vector<ParameterSpec>& specs, const Names& names) const {
  const NamedPlaces places = named_places(specs, names);
  std::vector<std::string> tensors(specs.size()), problems;
  for (const auto& [tensor, place] : tensors_) {
    const Entry& entry = *place.entry;
    const auto spec = place_of(tensor, places, names);
    if (!spec) {
      if (!is_ignored(tensor, names))
        problems.push_back(fmt::format("not in the encoder: {} {}", in_quotes(tensor), shape_list(entry.shape)));
      continue;
    }
    const auto& wanted = specs[*spec];
    if (!tensors[*spec].empty())
      problems.push_back(fmt::format("twice: {} and {} are the same", in_quotes(tensors[*spec]), in_quotes(tensor)));
    else if (entry.shape != wanted.shape)
      problems.push_back(fmt::format("wrong shape: {} is {}, config.json asks for {}", in_quotes(tensor),
                                     shape_list(entry.shape), shape_list(wanted.shape)));
    else if (!is_floating(entry.dtype))
      problems.push_back(fmt::format("wrong dtype: {} is {}, not floating-point numbers", in_quotes(tensor),
                                     checkpoints::safetensors_dtype(entry.dtype)));
    tensors[*spec] = tensor;
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    const std::string name = without_prefix(specs[i].name, names.parameter_prefix);
    const auto is_optional = [&](const std::string& each) { return each == name || each == specs[i].name; };
    if (tensors[i].empty() && std::none_of(names.optional.begin(), names.optional.end(), is_optional))
      problems.push_back(fmt::format("missing: '{}' {}", name, shape_list(specs[i].shape)));
  }
  if (!problems.empty())
    throw Error(ExitCode::kBadData, fmt::format("{}: the weights do not fit config.json:\n  {}", printable(path_),
                                                join_first(problems, kListedTensors, "\n  ")));
  return tensors;
}

void PretrainedFolder::check(const std::vector<ParameterSpec>& specs, const Names& names) const {
  if (has_weights()) matched(specs, names);
}

void PretrainedFolder::load(const std::vector<ParameterSpec>& specs, const Names& names, Parameters& parameters) const {
  if (!has_weights())
    throw Error(
        ExitCode::kIo,
        fmt::format("{}: has no pretrained weights: the encoder's own folder, with model.safetensors, is needed "
                    "where training begins",
                    printable(config_path_)));
  const std::vector<std::string> tensors = matched(specs, names);
  std::vector<size_t> order;  // as they lie in the files
  for (size_t i = 0; i < specs.size(); ++i)
    if (!tensors[i].empty()) order.push_back(i);
  const auto position = [&](size_t i) {
    const Place& place = tensors_.at(tensors[i]);
    return std::make_pair(place.file, place.entry->begin);
  };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return position(a) < position(b); });

  const at::NoGradGuard no_gradient;
  for (const size_t i : order) {
    const Place& place = tensors_.at(tensors[i]);
    const auto refuse_value_of = [&](const char* problem) {
      throw Error(ExitCode::kBadData, fmt::format("{}: tensor {} {}", printable(files_[place.file]->path()),
                                                  in_quotes(tensors[i]), problem));
    };
    const at::Tensor out = parameters[specs[i].name].detach().view({-1});
    const int64_t count = out.numel();
    const uint64_t size = c10::elementSize(place.entry->dtype);
    at::Tensor block = at::empty({std::min(count, kBlockOfValues)}, at::TensorOptions(place.entry->dtype));
    for (int64_t begin = 0; begin < count; begin += kBlockOfValues) {
      const at::Tensor part = block.narrow(0, 0, std::min(kBlockOfValues, count - begin));
      files_[place.file]->read(*place.entry, static_cast<uint64_t>(begin) * size, part.mutable_data_ptr(),
                               part.nbytes());
      if (!part.isfinite().all().item<bool>()) refuse_value_of("holds a value that is not finite (NaN or infinity)");
      const at::Tensor converted = part.to(out.scalar_type());
      if (part.scalar_type() == at::kDouble && !converted.isfinite().all().item<bool>())
        refuse_value_of("holds a float64 value that is too large for float32");
      out.narrow(0, begin, part.numel()).copy_(converted);
    }
  }
}

std::vector<std::string> PretrainedFolder::ignored(const Names& names) const {
  std::vector<std::string> found;
  for (const auto& [tensor, place] : tensors_)
    if (is_ignored(tensor, names)) found.push_back(tensor);
  return found;
}

std::string PretrainedFolder::content_hash() const {
  Sha256 all;
  for (const auto& [name, hash] : json_hashes_) all.update(fmt::format("{} {}\n", name, hash));
  std::string block(4 << 20, '\0');
  for (const auto& reader : files_) {
    Sha256 one;
    const uint64_t size = reader->file().size();
    for (uint64_t begin = 0; begin < size; begin += block.size()) {
      const uint64_t count = std::min<uint64_t>(block.size(), size - begin);
      reader->file().read(begin, block.data(), count);
      one.update(std::string_view(block).substr(0, count));
    }
    all.update(fmt::format("{} {}\n", name_of(reader->path()), one.hex()));
  }
  return all.hex();
}

}  // namespace muster::models
