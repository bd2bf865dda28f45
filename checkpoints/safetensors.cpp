#include "checkpoints/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
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

// In the order of their tensors in a file: the public package sorts by its list of dtypes from the end to the start.
constexpr std::pair<const char*, at::ScalarType> kDtypes[] = {
    {"I64", at::kLong}, {"F64", at::kDouble}, {"F32", at::kFloat}, {"I32", at::kInt}, {"BF16", at::kBFloat16},
    {"F16", at::kHalf}, {"I16", at::kShort},  {"I8", at::kChar},   {"U8", at::kByte}, {"BOOL", at::kBool}};

// Receives the header's JSON piece by piece, so that no document tree (many times the header's size) is ever built and
// nesting is rejected where it starts. The first problem ends the parse.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(SafetensorsHeader& header) : header_(header) {}

  const std::string& problem() const { return problem_; }
  const std::string& tensor() const { return tensor_; }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) return at(Place::kTop);
    if (place_ != Place::kTopValue) return unexpected("an object");
    entry_ = {};
    return at(tensor_ == "__metadata__" ? Place::kMetadata : Place::kEntry);
  }

  bool key(string_t& name) override {
    if (place_ == Place::kTop) {
      tensor_ = name;
      if (name == "__metadata__" ? seen_metadata_ : header_.tensors.count(name) > 0) return wrong("it occurs twice");
      seen_metadata_ = seen_metadata_ || name == "__metadata__";
      return at(Place::kTopValue);
    }
    if (place_ == Place::kMetadata) {
      metadata_key_ = name;
      if (header_.metadata.count(name) > 0) return wrong(fmt::format("the key {} occurs twice", in_quotes(name)));
      return at(Place::kMetadataValue);
    }
    if (name == "dtype" && !entry_.dtype) return at(Place::kDtype);
    if (name == "shape" && !entry_.shape) return at(Place::kShape);
    if (name == "data_offsets" && !entry_.offsets) return at(Place::kOffsets);
    return wrong(fmt::format("the key {} is unknown or occurs twice; a tensor has dtype, shape and data_offsets",
                             in_quotes(name)));
  }

  bool string(string_t& text) override {
    if (place_ == Place::kMetadataValue) {
      header_.metadata.emplace(std::move(metadata_key_), text);
      return at(Place::kMetadata);
    }
    if (place_ != Place::kDtype) return unexpected("a text");
    entry_.dtype = dtype_of_safetensors(text);
    if (entry_.dtype) return at(Place::kEntry);
    return wrong(
        fmt::format("its dtype {} cannot be read; F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL can", in_quotes(text)));
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kShape) {
      entry_.shape.emplace();
      return at(Place::kShapeNumbers);
    }
    if (place_ != Place::kOffsets) return unexpected("a list");
    entry_.offsets.emplace();
    return at(Place::kOffsetsNumbers);
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

  bool end_array() override { return at(Place::kEntry); }

  bool end_object() override {
    if (place_ == Place::kEntry) {
      if (!entry_.dtype || !entry_.shape || !entry_.offsets || entry_.offsets->size() != 2) {
        return wrong("dtype, shape or data_offsets (two numbers) is missing");
      }
      header_.tensors.emplace(tensor_, SafetensorsHeader::Entry{*entry_.dtype, std::move(*entry_.shape),
                                                                (*entry_.offsets)[0], (*entry_.offsets)[1]});
    }
    tensor_.clear();
    return at(place_ == Place::kTop ? Place::kEnd : Place::kTop);
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

  bool at(Place place) {
    place_ = place;
    return true;
  }
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
  if (dtype == other_dtype) return name < other_name;
  const auto* first = std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const auto& each) {
    return each.second == dtype || each.second == other_dtype;
  });
  return first->second == dtype;
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
    if (!tensor.empty())
      where = tensor == "__metadata__" ? "__metadata__: " : fmt::format("tensor {}: ", in_quotes(tensor));
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

std::string safetensors_head(const SafetensorsHeader& header, const std::vector<std::string>& order) {
  std::string text = "{";
  try {
    if (!header.metadata.empty()) text += fmt::format("\"__metadata__\":{},", Json(header.metadata).dump());
    // Member by member: a document of all tensors would look every name up in a list.
    for (const std::string& name : order) {
      const SafetensorsHeader::Entry& entry = header.tensors.at(name);
      text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}},", Json(name).dump(),
                          safetensors_dtype(entry.dtype), fmt::join(entry.shape, ","), entry.begin, entry.end);
    }
  } catch (const Json::exception&) {
    throw Error(ExitCode::kBadData, "A tensor name or metadata text is not valid UTF-8, which safetensors needs.");
  }
  if (text.back() == ',') text.pop_back();
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  if (length > kLongestSafetensorsHeader) {
    throw Error(
        ExitCode::kBadData,
        fmt::format("The safetensors header would have {} bytes; the format allows 100,000,000. Use fewer tensors or "
                    "less metadata.",
                    length));
  }
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors and fingerprints are little-endian; this machine would need byte swapping"
#endif

void require_storable(const NamedTensor& item) {
  const auto refuse = [&](const char* what) {
    throw std::invalid_argument(fmt::format("tensor {} is {}", item.name, what));
  };
  if (!item.tensor.defined()) refuse("undefined");
  if (item.tensor.layout() != at::kStrided) refuse("sparse");
  if (item.name == "__metadata__") throw std::invalid_argument("a tensor cannot be named __metadata__");
  safetensors_dtype(item.tensor.scalar_type());
}

std::vector<const NamedTensor*> by_name(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& item : tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) { return a->name < b->name; });
  return order;
}

namespace {

struct Layout {
  std::vector<const NamedTensor*> order;
  std::string head;
  uint64_t data_size = 0;
};

Layout lay_out(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
  Layout layout{by_name(tensors), "", 0};
  for (const NamedTensor* item : layout.order) require_storable(*item);
  std::stable_sort(layout.order.begin(), layout.order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return comes_first(a->tensor.scalar_type(), a->name, b->tensor.scalar_type(), b->name);
  });
  SafetensorsHeader header{{}, metadata};
  std::vector<std::string> names;
  for (const auto* item : layout.order) {
    const at::Tensor& tensor = item->tensor;
    const uint64_t begin = layout.data_size;
    layout.data_size += tensor.numel() * tensor.element_size();
    if (!header.tensors
             .try_emplace(item->name,
                          SafetensorsHeader::Entry{tensor.scalar_type(), tensor.sizes().vec(), begin, layout.data_size})
             .second)
      throw std::invalid_argument(fmt::format("two tensors are named {}", item->name));
    names.push_back(item->name);
  }
  layout.head = safetensors_head(header, names);
  return layout;
}

void emit(const Layout& layout, const std::function<void(std::string_view)>& sink) {
  sink(layout.head);
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
  AtomicFile file(path, layout.head.size() + layout.data_size);
  emit(layout, [&](std::string_view bytes) { file.write(bytes); });
  file.commit();
}

namespace {

[[noreturn]] void refuse_file(const std::string& path, const std::string& problem) {
  throw Error(ExitCode::kBadData, fmt::format("{} is not a valid safetensors file: {}.", path, problem));
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path), file_(path) {
  uint64_t header_size = 0;
  if (file_.size() < 8) refuse_file(path, fmt::format("it has {} bytes, not even a header length", file_.size()));
  file_.read(0, &header_size, 8);
  if (header_size > kLongestSafetensorsHeader)
    refuse_file(path, fmt::format("its header would have {} bytes; the format allows 100,000,000", header_size));
  if (header_size > file_.size() - 8)
    refuse_file(path, fmt::format("its header should have {} bytes, but the file has only {}: is it cut short?",
                                  header_size, file_.size()));
  std::string json(header_size, '\0');
  file_.read(8, json.data(), header_size);
  data_begin_ = 8 + header_size;
  header_ = parse_safetensors_header(json, file_.size() - data_begin_, path);
}

void SafetensorsReader::read(const SafetensorsHeader::Entry& entry, uint64_t from, void* out, uint64_t count) {
  if (count > 0) file_.read(data_begin_ + entry.begin + from, out, count);
}

SafetensorsFile read_safetensors(const std::string& path) {
  SafetensorsReader reader(path);
  SafetensorsFile file;
  file.metadata = reader.header().metadata;
  for (const auto& [name, entry] : reader.header().tensors) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.dtype));
    reader.read(entry, 0, tensor.mutable_data_ptr(), entry.end - entry.begin);
    if (entry.dtype == at::kBool && !holds_booleans(tensor.const_data_ptr(), entry.end - entry.begin))
      refuse_file(path, fmt::format("tensor {}: a BOOL byte is neither 0 nor 1", in_quotes(name)));
    file.tensors.emplace(name, std::move(tensor));
  }
  return file;
}

}  // namespace muster::checkpoints
