#include "checkpoints/safetensors_header.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include "base/error.h"

namespace muster::checkpoints {


namespace {

using Json = nlohmann::json;

constexpr std::pair<const char*, at::ScalarType> kDtypes[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
    {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};

// Receives the header's JSON piece by piece, so that no document tree (many times the header's size) is ever built and
// nesting is cut off where it starts. The first thing that is wrong ends the parse with `problem_` set.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(SafetensorsHeader& header) : header_(header) {}

  const std::string& problem() const { return problem_; }
  const std::string& tensor() const { return tensor_; }

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTopValue:
        if (tensor_ == "__metadata__") {
          place_ = Place::kMetadata;
        } else {
          entry_ = {};
          place_ = Place::kEntry;
        }
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(string_t& name) override {
    switch (place_) {
      case Place::kTop:
        tensor_ = name;
        if (name == "__metadata__" ? seen_metadata_ : header_.tensors.count(name) > 0)
          return wrong("it is there twice");
        seen_metadata_ = seen_metadata_ || name == "__metadata__";
        place_ = Place::kTopValue;
        return true;
      case Place::kMetadata:
        metadata_key_ = name;
        if (header_.metadata.count(name) > 0) return wrong("the key " + printable(name) + " is there twice");
        place_ = Place::kMetadataValue;
        return true;
      default:
        if (name == "dtype" && !entry_.dtype) {
          place_ = Place::kDtype;
        } else if (name == "shape" && !entry_.shape) {
          place_ = Place::kShape;
        } else if (name == "data_offsets" && !entry_.offsets) {
          place_ = Place::kOffsets;
        } else {
          return wrong("the key " + printable(name) +
                       " is unknown or there twice; a tensor has dtype, shape and data_offsets");
        }
        return true;
    }
  }

  bool string(string_t& text) override {
    if (place_ == Place::kMetadataValue) {
      header_.metadata.emplace(std::move(metadata_key_), text);
      place_ = Place::kMetadata;
      return true;
    }
    if (place_ != Place::kDtype) return unexpected("a text");
    entry_.dtype = dtype_of_safetensors(text);
    if (!entry_.dtype) {
      return wrong("its dtype " + printable(text) + " cannot be read; F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL can");
    }
    place_ = Place::kEntry;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kShape) {
      entry_.shape.emplace();
      place_ = Place::kShapeNumbers;
    } else if (place_ == Place::kOffsets) {
      entry_.offsets.emplace();
      place_ = Place::kOffsetsNumbers;
    } else {
      return unexpected("a list");
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShapeNumbers) {
      if (value > uint64_t{std::numeric_limits<int64_t>::max()}) return wrong("its shape is too large");
      if (entry_.shape->size() == kMostDimensions) return wrong("it has more than 64 dimensions");
      entry_.shape->push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::kOffsetsNumbers) {
      if (entry_.offsets->size() == 2) return wrong("its data_offsets are not two numbers");
      entry_.offsets->push_back(value);
    } else {
      return unexpected("a number");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::kEntry;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kEntry) {
      if (!entry_.dtype || !entry_.shape || !entry_.offsets || entry_.offsets->size() != 2) {
        return wrong("dtype, shape or data_offsets (two numbers) is missing");
      }
      header_.tensors.emplace(tensor_, SafetensorsHeader::Entry{*entry_.dtype, std::move(*entry_.shape),
                                                                (*entry_.offsets)[0], (*entry_.offsets)[1]});
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    tensor_.clear();
    return true;
  }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("true or false"); }
  bool number_integer(number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return unexpected("a number that is not whole"); }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return wrong("its header is not valid JSON in UTF-8 (at byte " + std::to_string(position) + " of the header)");
  }

 private:
  enum class Place {
    kStart,
    kTop,
    kTopValue,
    kMetadata,
    kMetadataValue,
    kEntry,
    kDtype,
    kShape,
    kShapeNumbers,
    kOffsets,
    kOffsetsNumbers,
    kEnd
  };
  struct PartialEntry {
    std::optional<at::ScalarType> dtype;
    std::optional<std::vector<int64_t>> shape;
    std::optional<std::vector<uint64_t>> offsets;
  };

  bool wrong(const std::string& problem) {
    problem_ = problem;
    return false;
  }
  bool unexpected(const std::string& what) { return wrong("there is " + what + " where the format has none"); }

  SafetensorsHeader& header_;
  Place place_ = Place::kStart;
  std::string tensor_;  // the top-level key being read
  std::string metadata_key_;
  bool seen_metadata_ = false;
  PartialEntry entry_;
  std::string problem_;
};

}  // namespace

std::string safetensors_dtype(at::ScalarType dtype) {
  for (const auto& [name, candidate] : kDtypes) {
    if (candidate == dtype) return name;
  }
  throw std::invalid_argument(std::string("muster does not store tensors of dtype ") + c10::toString(dtype));
}

std::optional<at::ScalarType> dtype_of_safetensors(std::string_view name) {
  for (const auto& [known, dtype] : kDtypes) {
    if (name == known) return dtype;
  }
  return std::nullopt;
}

bool comes_first(at::ScalarType dtype, const std::string& name, at::ScalarType other_dtype,
                 const std::string& other_name) {
  // The public package sorts by its list of dtypes from the end to the start.
  static constexpr at::ScalarType kOrder[] = {at::kLong, at::kDouble, at::kFloat, at::kInt,  at::kBFloat16,
                                              at::kHalf, at::kShort,  at::kChar,  at::kByte, at::kBool};
  const auto* place = std::find(std::begin(kOrder), std::end(kOrder), dtype);
  const auto* other_place = std::find(std::begin(kOrder), std::end(kOrder), other_dtype);
  return place != other_place ? place < other_place : name < other_name;
}

std::optional<uint64_t> bytes_of_shape(at::ScalarType dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(dtype));
  bool empty = false;
  for (const int64_t size : shape) {
    empty = empty || size == 0;
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes)) return std::nullopt;
  }
  return empty ? 0 : static_cast<uint64_t>(bytes);
}

std::string printable(const std::string& text) {
  std::string shown = Json(text.substr(0, 120)).dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 120) shown.insert(shown.size() - 1, "...");
  return shown;
}

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_size, const std::string& file) {
  const auto refuse = [&](const std::string& tensor, const std::string& problem) {
    std::string where;
    if (!tensor.empty()) where = tensor == "__metadata__" ? "__metadata__: " : "tensor " + printable(tensor) + ": ";
    throw Error(ExitCode::kBadData, file + " is not a valid safetensors file: " + where + problem + ".");
  };
  if (json.empty() || json.front() != '{') refuse("", "its header does not start with {");

  // The parser takes a zero byte for the end of its input and would not look at what follows.
  const std::size_t zero = json.find('\0');
  if (zero != json.npos)
    refuse("", "its header is not valid JSON in UTF-8 (at byte " + std::to_string(zero) + " of the header)");

  SafetensorsHeader header;
  HeaderReader reader(header);
  if (!Json::sax_parse(json.begin(), json.end(), &reader)) refuse(reader.tensor(), reader.problem());

  std::vector<const std::pair<const std::string, SafetensorsHeader::Entry>*> in_order;
  for (const auto& item : header.tensors) in_order.push_back(&item);
  std::sort(in_order.begin(), in_order.end(), [](const auto* a, const auto* b) {
    return std::make_pair(a->second.begin, a->second.end) < std::make_pair(b->second.begin, b->second.end);
  });
  uint64_t covered = 0;
  for (const auto* item : in_order) {
    const auto& [name, entry] = *item;
    if (entry.end < entry.begin) refuse(name, "its data ends before it begins");
    if (entry.end > data_size) {
      refuse(name, "its data ends at byte " + std::to_string(entry.end) + ", but the file has " +
                       std::to_string(data_size) + " bytes of data: is it cut short?");
    }
    if (entry.begin < covered) refuse(name, "its data overlaps another tensor's");
    if (entry.begin > covered) refuse(name, "there is a gap before its data");
    const std::optional<uint64_t> bytes = bytes_of_shape(entry.dtype, entry.shape);
    if (!bytes) refuse(name, "its shape is too large");
    if (*bytes != entry.end - entry.begin) {
      refuse(name, "dtype and shape need " + std::to_string(*bytes) + " bytes, its data has " +
                       std::to_string(entry.end - entry.begin));
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    refuse("", "its tensors have " + std::to_string(covered) + " bytes of data, the file " + std::to_string(data_size));
  }
  return header;
}

std::string format_safetensors_header(const SafetensorsHeader& header, const std::vector<std::string>& order) {
  nlohmann::ordered_json metadata = nlohmann::ordered_json::object();
  for (const auto& [key, value] : header.metadata) metadata[key] = value;
  std::string text = "{";
  try {
    if (!header.metadata.empty()) text += "\"__metadata__\":" + metadata.dump() + ",";
    // Member by member: a document of all tensors would look every name up in a list.
    for (const std::string& name : order) {
      const SafetensorsHeader::Entry& entry = header.tensors.at(name);
      nlohmann::ordered_json value;
      value["dtype"] = safetensors_dtype(entry.dtype);
      value["shape"] = entry.shape;
      value["data_offsets"] = {entry.begin, entry.end};
      text += Json(name).dump() + ":" + value.dump() + ",";
    }
  } catch (const Json::exception&) {
    throw Error(ExitCode::kBadData, "A tensor name or metadata text is not valid UTF-8, which safetensors needs.");
  }
  if (text.back() == ',') text.pop_back();
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kLongestSafetensorsHeader) {
    throw Error(ExitCode::kBadData,
                "The safetensors header would have " + std::to_string(text.size()) +
                    " bytes; the format allows 100,000,000. Fewer tensors or less metadata is needed.");
  }
  return text;
}

}  // namespace muster::checkpoints
