#include "checkpoints/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/input_file.h"
#include "base/text.h"

namespace muster::checkpoints {
namespace {

using Json = nlohmann::json;

constexpr std::pair<const char*, at::ScalarType> kDtypes[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
    {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};

// Receives the header's JSON piece by piece, so that no document tree (many times the header's size) is ever built and
// nesting is rejected where it starts. The first problem ends the parse.
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
        if (name == "__metadata__" ? seen_metadata_ : header_.tensors.count(name) > 0) return wrong("it occurs twice");
        seen_metadata_ = seen_metadata_ || name == "__metadata__";
        place_ = Place::kTopValue;
        return true;
      case Place::kMetadata:
        metadata_key_ = name;
        if (header_.metadata.count(name) > 0) return wrong(fmt::format("the key {} occurs twice", in_quotes(name)));
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
          return wrong(fmt::format("the key {} is unknown or occurs twice; a tensor has dtype, shape and data_offsets",
                                   in_quotes(name)));
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
      return wrong(
          fmt::format("its dtype {} cannot be read; F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL can", in_quotes(text)));
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
    return wrong(fmt::format("its header is not valid JSON in UTF-8 (at byte {} of the header)", position));
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
  bool unexpected(const std::string& what) { return wrong(fmt::format("there is {} where the format has none", what)); }

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
  throw std::invalid_argument(fmt::format("muster does not store tensors of dtype {}", c10::toString(dtype)));
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

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t data_size, const std::string& file) {
  const auto refuse = [&](const std::string& tensor, const std::string& problem) {
    std::string where;
    if (!tensor.empty()) where = tensor == "__metadata__" ? "__metadata__: " : "tensor " + in_quotes(tensor) + ": ";
    throw Error(ExitCode::kBadData, fmt::format("{} is not a valid safetensors file: {}{}.", file, where, problem));
  };
  if (json.empty() || json.front() != '{') refuse("", "its header does not start with {");

  // The parser takes a zero byte for the end of its input and would not look at what follows.
  const std::size_t zero = json.find('\0');
  if (zero != json.npos)
    refuse("", fmt::format("its header is not valid JSON in UTF-8 (at byte {} of the header)", zero));

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
      refuse(name, fmt::format("its data ends at byte {}, but the file has {} bytes of data: is it cut short?",
                               entry.end, data_size));
    }
    if (entry.begin < covered) refuse(name, "its data overlaps another tensor's");
    if (entry.begin > covered) refuse(name, "there is a gap before its data");
    const std::optional<uint64_t> bytes = bytes_of_shape(entry.dtype, entry.shape);
    if (!bytes) refuse(name, "its shape is too large");
    if (*bytes != entry.end - entry.begin) {
      refuse(name, fmt::format("dtype and shape need {} bytes, its data has {}", *bytes, entry.end - entry.begin));
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    refuse("", fmt::format("its tensors have {} bytes of data, the file {}", covered, data_size));
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
    throw Error(
        ExitCode::kBadData,
        fmt::format("The safetensors header would have {} bytes; the format allows 100,000,000. Use fewer tensors or "
                    "less metadata.",
                    text.size()));
  }
  return text;
}

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors and fingerprints are little-endian; this machine would need byte swapping"
#endif

namespace {

void check_storable(const NamedTensor& item) {
  if (!item.tensor.defined()) throw std::invalid_argument("tensor " + item.name + " is undefined");
  if (item.tensor.layout() != at::kStrided) throw std::invalid_argument("tensor " + item.name + " is sparse");
  if (item.name == "__metadata__") throw std::invalid_argument("a tensor cannot be named __metadata__");
  safetensors_dtype(item.tensor.scalar_type());
}

std::vector<const NamedTensor*> file_order(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& item : tensors) {
    check_storable(item);
    order.push_back(&item);
  }
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return comes_first(a->tensor.scalar_type(), a->name, b->tensor.scalar_type(), b->name);
  });
  return order;
}

SafetensorsHeader header_for(const std::vector<const NamedTensor*>& order,
                             const std::map<std::string, std::string>& metadata) {
  SafetensorsHeader header;
  header.metadata = metadata;
  uint64_t position = 0;
  for (const NamedTensor* item : order) {
    const uint64_t end = position + item->tensor.numel() * item->tensor.element_size();
    SafetensorsHeader::Entry entry{item->tensor.scalar_type(), item->tensor.sizes().vec(), position, end};
    if (!header.tensors.emplace(item->name, std::move(entry)).second) {
      throw std::invalid_argument("two tensors are named " + item->name);
    }
    position = end;
  }
  return header;
}

std::string length_prefix(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

struct Layout {
  std::vector<const NamedTensor*> order;
  std::string header;
  uint64_t data_size = 0;
};

Layout lay_out(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
  Layout layout;
  layout.order = file_order(tensors);
  std::vector<std::string> names;
  for (const NamedTensor* item : layout.order) {
    names.push_back(item->name);
    layout.data_size += item->tensor.numel() * item->tensor.element_size();
  }
  layout.header = format_safetensors_header(header_for(layout.order, metadata), names);
  return layout;
}

void emit(const Layout& layout, const std::function<void(std::string_view)>& sink) {
  sink(length_prefix(layout.header.size()));
  sink(layout.header);
  for (const NamedTensor* item : layout.order) {
    if (item->tensor.numel() == 0) continue;
    const at::Tensor plain = item->tensor.detach().to(at::kCPU).contiguous();
    sink(std::string_view(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()));
  }
}

}  // namespace

bool holds_booleans(const void* bytes, uint64_t count) {
  const auto* first = static_cast<const unsigned char*>(bytes);
  return std::all_of(first, first + count, [](unsigned char byte) { return byte <= 1; });
}

void serialize_safetensors(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata,
                           const std::function<void(std::string_view)>& sink) {
  emit(lay_out(tensors, metadata), sink);
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const Layout layout = lay_out(tensors, metadata);
  AtomicFile file(path, 8 + layout.header.size() + layout.data_size);
  emit(layout, [&](std::string_view bytes) { file.write(bytes); });
  file.commit();
}

SafetensorsFile read_safetensors(const std::string& path) {
  InputFile input(path);
  const auto refuse = [&](const std::string& problem) {
    throw Error(ExitCode::kBadData, fmt::format("{} is not a valid safetensors file: {}.", path, problem));
  };
  uint64_t header_size = 0;
  if (input.size() < 8) refuse(fmt::format("it has {} bytes, not even a header length", input.size()));
  input.read(0, &header_size, 8);
  if (header_size > kLongestSafetensorsHeader) {
    refuse(fmt::format("its header would have {} bytes; the format allows 100,000,000", header_size));
  }
  if (header_size > input.size() - 8) {
    refuse(fmt::format("its header should have {} bytes, but the file has only {}: is it cut short?", header_size,
                       input.size()));
  }
  std::string json(header_size, '\0');
  input.read(8, json.data(), header_size);
  const uint64_t data_begin = 8 + header_size;
  SafetensorsHeader header = parse_safetensors_header(json, input.size() - data_begin, path);

  SafetensorsFile file;
  file.metadata = std::move(header.metadata);
  for (const auto& [name, entry] : header.tensors) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.dtype));
    if (entry.end > entry.begin)
      input.read(data_begin + entry.begin, tensor.mutable_data_ptr(), entry.end - entry.begin);
    if (entry.dtype == at::kBool && !holds_booleans(tensor.const_data_ptr(), entry.end - entry.begin)) {
      refuse(fmt::format("tensor {}: a BOOL byte is neither 0 nor 1", in_quotes(name)));
    }
    file.tensors.emplace(name, std::move(tensor));
  }
  return file;
}

}  // namespace muster::checkpoints
