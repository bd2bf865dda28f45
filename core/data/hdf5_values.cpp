#include <sys/stat.h>

#include <cstring>

#include "base/text.h"
#include "base/utf8.h"
#include "core/data/global_heap.h"
#include "core/data/hdf5_reader.h"

// Values of index datasets and attributes.
namespace muster::data::hdf5 {
namespace {

constexpr hssize_t max_attribute_elements = 100000;
constexpr size_t max_attribute_bytes = size_t{16} << 20;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void require_vector(const StoredDataset& dataset) {
  if (dataset.shape.size() != 1)
    throw Problem(dataset.path + ": must have one dimension, one value per sample, but its shape is " +
                  shape_text(dataset.shape));
}

void require_class(const StoredDataset& dataset, H5T_class_t wanted, const char* wanted_name) {
  if (dataset.type_class() != wanted)
    throw Problem(dataset.path + ": must be of type " + wanted_name + ", but is " + type_name(dataset.type.get()));
}

// Text of one fixed-length string as it lies in memory.
std::string trimmed(const char* bytes, size_t size, H5T_str_t padding) {
  if (padding != H5T_STR_SPACEPAD) return std::string(bytes, strnlen(bytes, size));
  while (size > 0 && bytes[size - 1] == ' ') --size;
  return std::string(bytes, size);
}

// The heap of the file that `object` lies in.
GlobalHeap heap_of(hid_t object, const std::string& path) {
  const Handle file(H5Iget_file_id(object), &H5Fclose);
  const Handle properties(H5Fget_create_plist(file.get()), &H5Pclose);
  hsize_t base = 0;
  size_t address_bytes = 0, size_bytes = 0;
  int* descriptor = nullptr;
  if (!properties.valid() || H5Pget_userblock(properties.get(), &base) < 0 ||
      H5Pget_sizes(properties.get(), &address_bytes, &size_bytes) < 0 ||
      H5Fget_vfd_handle(file.get(), H5P_DEFAULT, reinterpret_cast<void**>(&descriptor)) < 0 || !descriptor)
    throw Problem(path + ": its strings cannot be read" + reason());
  if (address_bytes != 8 || size_bytes != 8)
    throw Problem(path + ": variable-length strings of files with short addresses cannot be read");
  struct stat status {};
  if (fstat(*descriptor, &status) != 0 || static_cast<hsize_t>(status.st_size) < base)
    throw Problem(path + ": its strings cannot be read");
  return GlobalHeap(*descriptor, static_cast<int64_t>(base), status.st_size);
}

// `read(memory_type, buffer)` is H5Dread or H5Aread of the `count` strings of `object`.
template <typename Read>
std::vector<std::string> read_text(hid_t object, hid_t file_type, size_t count, const std::string& path, Read&& read) {
  std::vector<std::string> values;
  if (count == 0) return values;
  values.reserve(count);
  const htri_t variable = H5Tis_variable_str(file_type);
  if (variable < 0) throw Problem(path + ": its type cannot be read" + reason());
  if (variable) {
    const Handle type(string_reference_type(), &H5Tclose);
    std::vector<StringReference> references(count);
    if (read(type.get(), references.data()) < 0) throw Problem(path + ": its strings cannot be read" + reason());
    GlobalHeap heap = heap_of(object, path);
    try {
      for (const StringReference& reference : references) values.push_back(heap.text(reference));
    } catch (const Problem& problem) {
      throw Problem(path + ": " + problem.what());
    }
    return values;
  }
  const Handle type(H5Tcopy(file_type), &H5Tclose);
  if (!type.valid()) throw Problem(path + ": its type cannot be read" + reason());
  const size_t size = H5Tget_size(type.get());
  const H5T_str_t padding = H5Tget_strpad(type.get());
  std::vector<char> bytes(count * size);
  if (read(type.get(), bytes.data()) < 0) throw Problem(path + ": its strings cannot be read" + reason());
  for (size_t i = 0; i < count; ++i) values.push_back(trimmed(bytes.data() + i * size, size, padding));
  return values;
}

struct Attribute {
  Handle handle, type, space;
  size_t elements = 0;
};

Attribute open_attribute(const Handle& object, const std::string& name, const std::string& path) {
  if (!has_attribute(object, name)) throw Problem(path + ": attribute '" + name + "' is missing");
  const std::string where = path + ": attribute '" + name + "' ";
  Attribute attribute;
  attribute.handle = Handle(H5Aopen(object.get(), name.c_str(), H5P_DEFAULT), &H5Aclose);
  if (!attribute.handle.valid()) throw Problem(where + "cannot be read" + reason());
  attribute.type = Handle(H5Aget_type(attribute.handle.get()), &H5Tclose);
  attribute.space = Handle(H5Aget_space(attribute.handle.get()), &H5Sclose);
  if (!attribute.type.valid() || !attribute.space.valid()) throw Problem(where + "cannot be read" + reason());
  const hssize_t elements = H5Sget_simple_extent_npoints(attribute.space.get());
  const size_t element_bytes = H5Tget_size(attribute.type.get());
  if (elements < 0 || elements > max_attribute_elements || element_bytes > max_attribute_bytes ||
      static_cast<size_t>(elements) * element_bytes > max_attribute_bytes)
    throw Problem(where + "has an impossible size");
  attribute.elements = static_cast<size_t>(elements);
  return attribute;
}

}  // namespace

int64_t StoredDataset::elements() const {
  int64_t count = 1;  // open_dataset has made sure that this does not overflow
  for (const int64_t extent : shape) count *= extent;
  return count;
}

std::string type_name(hid_t type) {
  const std::string bits = std::to_string(8 * H5Tget_size(type));
  const std::string order = H5Tget_size(type) > 1 && H5Tget_order(type) == H5T_ORDER_BE ? "big-endian " : "";
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return order + (H5Tget_sign(type) == H5T_SGN_NONE ? "uint" : "int") + bits;
    case H5T_FLOAT:
      return order + "float" + bits;
    case H5T_STRING:
      return "string";
    case H5T_BITFIELD:
      return "bitfield";
    case H5T_OPAQUE:
      return "opaque";
    case H5T_COMPOUND:
      return "compound";
    case H5T_REFERENCE:
      return "reference";
    case H5T_ENUM:
      return "enum (or bool)";
    case H5T_VLEN:
      return "variable-length array";
    case H5T_ARRAY:
      return "array";
    default:
      return "unknown";
  }
}

std::vector<int64_t> read_integers(const StoredDataset& dataset) {
  require_vector(dataset);
  require_class(dataset, H5T_INTEGER, "integer (int64)");
  std::vector<int64_t> values(static_cast<size_t>(dataset.elements()));
  if (H5Dread(dataset.handle.get(), H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    throw Problem(dataset.path + ": cannot be read" + reason());
  return values;
}

std::vector<double> read_floats(const StoredDataset& dataset) {
  require_vector(dataset);
  require_class(dataset, H5T_FLOAT, "float (float32)");
  std::vector<double> values(static_cast<size_t>(dataset.elements()));
  if (H5Dread(dataset.handle.get(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    throw Problem(dataset.path + ": cannot be read" + reason());
  return values;
}

std::vector<std::string> read_strings(const StoredDataset& dataset) {
  require_vector(dataset);
  require_class(dataset, H5T_STRING, "string (UTF-8)");
  return read_text(dataset.handle.get(), dataset.type.get(), static_cast<size_t>(dataset.elements()), dataset.path,
                   [&](hid_t memory_type, void* buffer) {
                     return H5Dread(dataset.handle.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer);
                   });
}

bool has_attribute(const Handle& object, const std::string& name) { return H5Aexists(object.get(), name.c_str()) > 0; }

std::vector<std::string> read_string_attribute(const Handle& object, const std::string& name, const std::string& path) {
  const Attribute attribute = open_attribute(object, name, path);
  const std::string where = path + ": attribute '" + name + "'";
  if (H5Tget_class(attribute.type.get()) != H5T_STRING)
    throw Problem(where + " must be text, but is " + type_name(attribute.type.get()));
  auto values =
      read_text(attribute.handle.get(), attribute.type.get(), attribute.elements, where,
                [&](hid_t memory_type, void* buffer) { return H5Aread(attribute.handle.get(), memory_type, buffer); });
  for (const std::string& value : values) {
    if (!is_valid_utf8(value)) throw Problem(where + " is not UTF-8: " + in_quotes(value));
  }
  return values;
}

std::string read_one_string_attribute(const Handle& object, const std::string& name, const std::string& path) {
  const auto values = read_string_attribute(object, name, path);
  if (values.size() != 1)
    throw Problem(path + ": attribute '" + name + "' must be one text, but has " + std::to_string(values.size()));
  return values[0];
}

int64_t read_integer_attribute(const Handle& object, const std::string& name, const std::string& path) {
  const Attribute attribute = open_attribute(object, name, path);
  const std::string where = path + ": attribute '" + name + "' ";
  if (H5Tget_class(attribute.type.get()) != H5T_INTEGER || attribute.elements != 1)
    throw Problem(where + "must be one integer, but is " + type_name(attribute.type.get()) + " with " +
                  std::to_string(attribute.elements) + " elements");
  int64_t value = 0;
  if (H5Aread(attribute.handle.get(), H5T_NATIVE_INT64, &value) < 0) throw Problem(where + "cannot be read" + reason());
  return value;
}

}  // namespace muster::data::hdf5
