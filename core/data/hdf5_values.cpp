#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/text.h"
#include "base/utf8.h"
#include "core/data/hdf5_reader.h"

// Values of index datasets and attributes.
namespace muster::data::hdf5 {
namespace {

constexpr hssize_t max_attribute_elements = 100000;
constexpr size_t max_attribute_bytes = size_t{16} << 20;
constexpr uint64_t header_bytes = 16;  // of a heap collection, and of an object in it

// HDF5 keeps variable-length strings in "global heap collections" and stores references to them. HDF5 1.10 trusts every
// length in there: one flipped bit makes it write past its buffers. So muster lets HDF5 deliver the references and
// follows them itself, checking each step (HDF5 File Format Specification 3.0, section III.E).

// What is stored in place of a string: length (4 bytes), address of the collection (8), index in it (4), little-endian.
constexpr size_t reference_bytes = 16;

uint64_t little_endian(const void* bytes, int count) {
  uint64_t value = 0;
  for (int i = count; i-- > 0;) value = (value << 8) | static_cast<const unsigned char*>(bytes)[i];
  return value;
}

// An HDF5 "conversion" from a stored variable-length string to an opaque value of the same size: the bytes stay as they
// are.
herr_t keep_reference(hid_t source, hid_t target, H5T_cdata_t* data, size_t, size_t, size_t, void*, void*, hid_t) {
  if (data->command != H5T_CONV_INIT) return 0;
  data->need_bkg = H5T_BKG_NO;
  const bool fits = H5Tget_size(source) == reference_bytes && H5Tget_size(target) == reference_bytes;
  return fits && H5Tis_variable_str(source) > 0 ? 0 : -1;
}

// Memory type that makes H5Dread and H5Aread of variable-length strings deliver such references.
Handle string_reference_type() {
  static const herr_t registered = [] {
    const Handle strings(H5Tcopy(H5T_C_S1), &H5Tclose), opaque(H5Tcreate(H5T_OPAQUE, reference_bytes), &H5Tclose);
    H5Tset_size(strings.get(), H5T_VARIABLE);
    return H5Tregister(H5T_PERS_SOFT, "muster string reference", strings.get(), opaque.get(), &keep_reference);
  }();
  static_cast<void>(registered);
  return Handle(H5Tcreate(H5T_OPAQUE, reference_bytes), &H5Tclose);
}

// The collections of one file, read when first needed.
class GlobalHeap {
 public:
  // Of the file that `object` lies in; `path` is of the object, for messages.
  GlobalHeap(hid_t object, const std::string& path) : path_(path) {
    const Handle file(H5Iget_file_id(object), &H5Fclose);
    const Handle properties(H5Fget_create_plist(file.get()), &H5Pclose);
    hsize_t base = 0;
    size_t address_bytes = 0, size_bytes = 0;
    int* descriptor = nullptr;
    if (!properties.valid() || H5Pget_userblock(properties.get(), &base) < 0 ||
        H5Pget_sizes(properties.get(), &address_bytes, &size_bytes) < 0 ||
        H5Fget_vfd_handle(file.get(), H5P_DEFAULT, reinterpret_cast<void**>(&descriptor)) < 0 || !descriptor)
      fail(path_, "its strings cannot be read{}", reason());
    if (address_bytes != 8 || size_bytes != 8)
      fail(path_, "variable-length strings of files with short addresses cannot be read");
    struct stat status {};
    if (fstat(*descriptor, &status) != 0 || static_cast<hsize_t>(status.st_size) < base)
      fail(path_, "its strings cannot be read");
    descriptor_ = *descriptor;
    base_ = static_cast<int64_t>(base);
    file_bytes_ = status.st_size;
  }

  // Throws Problem when the reference leads nowhere.
  std::string text(const char* reference) {
    const uint64_t length = little_endian(reference, 4);
    if (length == 0) return "";
    const Collection& found = collection(little_endian(reference + 4, 8));
    const auto object = found.objects.find(little_endian(reference + 12, 4));
    if (object == found.objects.end() || length > object->second.second) fail_damaged();
    const char* begin = found.bytes.data() + object->second.first;
    return std::string(begin, strnlen(begin, length));
  }

 private:
  struct Collection {
    std::vector<char> bytes;
    std::map<uint64_t, std::pair<uint64_t, uint64_t>> objects;  // index -> first byte, size
  };

  [[noreturn]] void fail_damaged() const { fail(path_, "its strings cannot be read: the file is damaged"); }

  const Collection& collection(uint64_t address) {
    if (const auto found = collections_.find(address); found != collections_.end()) return found->second;
    const auto room = static_cast<uint64_t>(file_bytes_ - base_);
    if (address > room || room - address < header_bytes) fail_damaged();
    const int64_t position = base_ + static_cast<int64_t>(address);
    char header[header_bytes];
    if (read_bytes(descriptor_, position, header, sizeof(header)) != 0) fail_damaged();
    const uint64_t size = little_endian(header + 8, 8);
    if (std::memcmp(header, "GCOL", 4) != 0 || header[4] != 1 || size < header_bytes || size > room - address)
      fail_damaged();
    bytes_held_ += static_cast<int64_t>(size);
    if (bytes_held_ > file_bytes_) fail_damaged();  // overlapping collections could fill any memory
    Collection result;
    result.bytes.resize(size);
    if (read_bytes(descriptor_, position, result.bytes.data(), static_cast<int64_t>(size)) != 0) fail_damaged();
    for (uint64_t place = header_bytes; size - place >= header_bytes;) {
      const uint64_t index = little_endian(result.bytes.data() + place, 2);
      const uint64_t bytes = little_endian(result.bytes.data() + place + 8, 8);
      place += header_bytes;
      if (index == 0) break;  // the free space, always last
      if (bytes > size - place) fail_damaged();
      result.objects[index] = {place, bytes};
      place += bytes;
      place += std::min((8 - place % 8) % 8, size - place);
    }
    return collections_[address] = std::move(result);
  }

  const std::string path_;
  int descriptor_ = -1;
  int64_t base_ = 0;  // size of the user block, from which addresses count
  int64_t file_bytes_ = 0;
  int64_t bytes_held_ = 0;
  std::map<uint64_t, Collection> collections_;
};

void require_type(const StoredDataset& dataset, H5T_class_t wanted, const char* wanted_name) {
  if (dataset.type_class() != wanted)
    fail(dataset.path, "must be of type {}, but is {}", wanted_name, type_name(dataset.type.get()));
}

// The dimension and type that index datasets must have.
void require_vector_of(const StoredDataset& dataset, H5T_class_t wanted, const char* wanted_name) {
  if (dataset.shape.size() != 1)
    fail(dataset.path, "must have one dimension, one value per sample, but its shape is {}", dataset.shape_text());
  require_type(dataset, wanted, wanted_name);
}

template <typename Value>
std::vector<Value> read_numbers(const StoredDataset& dataset, hid_t memory_type) {
  size_t count = 1;
  for (const int64_t extent : dataset.shape) count *= static_cast<size_t>(extent);
  std::vector<Value> values(count);
  if (H5Dread(dataset.handle.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    fail(dataset.path, "cannot be read{}", reason());
  return values;
}

// Text of one fixed-length string as it lies in memory.
std::string unpadded(const char* bytes, size_t size, H5T_str_t padding) {
  if (padding != H5T_STR_SPACEPAD) return std::string(bytes, strnlen(bytes, size));
  while (size > 0 && bytes[size - 1] == ' ') --size;
  return std::string(bytes, size);
}

// `read(memory_type, buffer)` is H5Dread or H5Aread of the `count` strings of `object`.
template <typename Read>
std::vector<std::string> read_text(hid_t object, hid_t file_type, size_t count, const std::string& path, Read&& read) {
  std::vector<std::string> values;
  if (count == 0) return values;
  values.reserve(count);
  const htri_t variable = H5Tis_variable_str(file_type);
  const Handle type = variable > 0 ? string_reference_type() : Handle(H5Tcopy(file_type), &H5Tclose);
  if (variable < 0 || !type.valid()) fail(path, "its type cannot be read{}", reason());
  const size_t size = H5Tget_size(type.get());
  std::vector<char> bytes(count * size);
  if (read(type.get(), bytes.data()) < 0) fail(path, "its strings cannot be read{}", reason());
  if (variable) {
    GlobalHeap heap(object, path);
    for (size_t i = 0; i < count; ++i) values.push_back(heap.text(bytes.data() + i * size));
  } else {
    const H5T_str_t padding = H5Tget_strpad(type.get());
    for (size_t i = 0; i < count; ++i) values.push_back(unpadded(bytes.data() + i * size, size, padding));
  }
  return values;
}

struct Attribute {
  Handle handle, type;
  size_t elements = 0;
  std::string place;  // for messages
};

Attribute open_attribute(const Handle& object, const std::string& name, const std::string& path) {
  Attribute attribute;
  attribute.place = fmt::format("{}: attribute '{}'", path, name);
  const auto fail_as = [&](const std::string& text) { throw Problem(attribute.place + text); };
  if (!has_attribute(object, name)) fail_as(" is missing");
  attribute.handle = Handle(H5Aopen(object.get(), name.c_str(), H5P_DEFAULT), &H5Aclose);
  attribute.type = Handle(H5Aget_type(attribute.handle.get()), &H5Tclose);
  const Handle space(H5Aget_space(attribute.handle.get()), &H5Sclose);
  if (!attribute.handle.valid() || !attribute.type.valid() || !space.valid()) fail_as(" cannot be read" + reason());
  const hssize_t elements = H5Sget_simple_extent_npoints(space.get());
  const size_t element_bytes = H5Tget_size(attribute.type.get());
  if (elements < 0 || elements > max_attribute_elements || element_bytes > max_attribute_bytes ||
      static_cast<size_t>(elements) * element_bytes > max_attribute_bytes)
    fail_as(" has an impossible size");
  attribute.elements = static_cast<size_t>(elements);
  return attribute;
}

}  // namespace

std::string type_name(hid_t type) {
  const char* order = H5Tget_size(type) > 1 && H5Tget_order(type) == H5T_ORDER_BE ? "big-endian " : "";
  const auto number = [&](const char* kind) { return fmt::format("{}{}{}", order, kind, 8 * H5Tget_size(type)); };
  const H5T_class_t kind = H5Tget_class(type);
  if (kind == H5T_INTEGER) return number(H5Tget_sign(type) == H5T_SGN_NONE ? "uint" : "int");
  if (kind == H5T_FLOAT) return number("float");
  static const std::map<H5T_class_t, const char*> names{
      {H5T_STRING, "string"},     {H5T_BITFIELD, "bitfield"},         {H5T_OPAQUE, "opaque"},
      {H5T_COMPOUND, "compound"}, {H5T_REFERENCE, "reference"},       {H5T_ENUM, "enum (or bool)"},
      {H5T_ARRAY, "array"},       {H5T_VLEN, "variable-length array"}};
  const auto found = names.find(kind);
  return found == names.end() ? "unknown" : found->second;
}

std::vector<int64_t> read_integers(const StoredDataset& dataset) {
  require_vector_of(dataset, H5T_INTEGER, "integer (int64)");
  return read_numbers<int64_t>(dataset, H5T_NATIVE_INT64);
}

std::vector<int64_t> read_integer_rows(const StoredDataset& dataset) {
  if (dataset.shape.size() != 2)
    fail(dataset.path, "must have two dimensions, samples and classes, but its shape is {}", dataset.shape_text());
  require_type(dataset, H5T_INTEGER, "integer (int64)");
  return read_numbers<int64_t>(dataset, H5T_NATIVE_INT64);
}

std::vector<double> read_floats(const StoredDataset& dataset) {
  require_vector_of(dataset, H5T_FLOAT, "float (float32)");
  return read_numbers<double>(dataset, H5T_NATIVE_DOUBLE);
}

std::vector<std::string> read_strings(const StoredDataset& dataset) {
  require_vector_of(dataset, H5T_STRING, "string (UTF-8)");
  return read_text(dataset.handle.get(), dataset.type.get(), static_cast<size_t>(dataset.shape[0]), dataset.path,
                   [&](hid_t memory_type, void* buffer) {
                     return H5Dread(dataset.handle.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer);
                   });
}

bool has_attribute(const Handle& object, const std::string& name) { return H5Aexists(object.get(), name.c_str()) > 0; }

std::vector<std::string> read_string_attribute(const Handle& object, const std::string& name, const std::string& path) {
  const Attribute attribute = open_attribute(object, name, path);
  if (H5Tget_class(attribute.type.get()) != H5T_STRING)
    throw Problem(fmt::format("{} must be text, but is {}", attribute.place, type_name(attribute.type.get())));
  auto values =
      read_text(attribute.handle.get(), attribute.type.get(), attribute.elements, attribute.place,
                [&](hid_t memory_type, void* buffer) { return H5Aread(attribute.handle.get(), memory_type, buffer); });
  for (const std::string& value : values)
    if (!is_valid_utf8(value)) throw Problem(fmt::format("{} is not UTF-8: {}", attribute.place, in_quotes(value)));
  return values;
}

std::string read_one_string_attribute(const Handle& object, const std::string& name, const std::string& path) {
  const auto values = read_string_attribute(object, name, path);
  if (values.size() != 1) fail(path, "attribute '{}' must be one text, but has {}", name, values.size());
  return values[0];
}

int64_t read_integer_attribute(const Handle& object, const std::string& name, const std::string& path) {
  const Attribute attribute = open_attribute(object, name, path);
  if (H5Tget_class(attribute.type.get()) != H5T_INTEGER || attribute.elements != 1)
    throw Problem(fmt::format("{} must be one integer, but is {} with {} elements", attribute.place,
                              type_name(attribute.type.get()), attribute.elements));
  int64_t value = 0;
  if (H5Aread(attribute.handle.get(), H5T_NATIVE_INT64, &value) < 0)
    throw Problem(fmt::format("{} cannot be read{}", attribute.place, reason()));
  return value;
}

}  // namespace muster::data::hdf5
