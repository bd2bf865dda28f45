#pragma once

#include <fmt/format.h>
#include <hdf5.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/problems.h"

// The part of HDF5 that containers need, made safe against files that are damaged or malicious: nothing outside the
// file is ever opened, and nothing is allocated that the file does not really hold. All functions throw Problem when
// the file is wrong; all must be called with library_mutex() held, because HDF5 is usually built without thread safety.
namespace muster::data::hdf5 {

std::mutex& library_mutex();

// Owns an HDF5 identifier.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);

  Handle() = default;
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() { reset(); }

  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  // Gives the identifier away: for a close whose failure matters.
  hid_t release() { return std::exchange(id_, -1); }
  void reset() {
    if (id_ >= 0) close_(id_);
    id_ = -1;
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

// Turns off HDF5's own printing and its clean-up at exit; call before other HDF5 functions.
void prepare_library();

// Innermost description on HDF5's error stack, as " (...)", or "". Call right after the failed function.
std::string reason();

// Throws Problem "PLACE: text".
template <typename... Values>
[[noreturn]] void fail(const std::string& place, fmt::format_string<Values...> text, Values&&... values) {
  throw Problem(fmt::format("{}: {}", place, fmt::format(text, std::forward<Values>(values)...)));
}

// How files are opened: without file locks (network file systems, read-only folders).
Handle file_access();

struct File {
  Handle handle;
  int descriptor = -1;  // HDF5's own, valid while `handle` is
  int64_t bytes = 0;
};

// Opens for reading. Throws Error(kIo) when the path cannot be opened, Problem when it is no whole HDF5 file.
File open_file(const std::string& path);

// Reads all `count` bytes at `position` of an open file. Returns 0, or the errno of a failure, or -1 when the file ends
// before. Needs no lock.
int read_bytes(int descriptor, int64_t position, void* out, int64_t count);

// Whether `group` has a link called `name`.
bool has_child(const Handle& group, const std::string& name);

// Names of all links of the group, sorted; `path` of the group for messages.
std::vector<std::string> child_names(const Handle& group, const std::string& path);

// Throws Problem when the link is missing, leads anywhere but into this file, or is no group.
Handle open_group(const Handle& parent, const std::string& name, const std::string& path);

// A dataset whose values are in this file and fit into it.
struct StoredDataset {
  Handle handle;
  Handle type;
  std::string path;
  std::vector<int64_t> shape;
  H5D_layout_t layout = H5D_CONTIGUOUS;
  std::string filters;   // "gzip", "gzip+shuffle", "" ...
  int64_t address = -1;  // of contiguous values, from the start of the file; -1: none
  int64_t stored_bytes = 0;
  int64_t type_bytes = 0;  // of one value

  H5T_class_t type_class() const { return H5Tget_class(type.get()); }
  std::string shape_text() const { return fmt::format("[{}]", fmt::join(shape, ", ")); }
};

// Throws Problem when the dataset is missing, virtual, external, bigger than what the file holds, or null.
StoredDataset open_dataset(const File& file, const Handle& parent, const std::string& name, const std::string& path);

// "float32", "big-endian int16", "string", "compound" ...
std::string type_name(hid_t type);

// All values of a one-dimensional dataset. Throw Problem on another rank or type.
std::vector<int64_t> read_integers(const StoredDataset& dataset);
// Of a two-dimensional one, row by row.
std::vector<int64_t> read_integer_rows(const StoredDataset& dataset);
std::vector<double> read_floats(const StoredDataset& dataset);
std::vector<std::string> read_strings(const StoredDataset& dataset);

// Attributes of `object`, whose path is for messages. A scalar may also be an array of one element.
bool has_attribute(const Handle& object, const std::string& name);
std::vector<std::string> read_string_attribute(const Handle& object, const std::string& name, const std::string& path);
std::string read_one_string_attribute(const Handle& object, const std::string& name, const std::string& path);
int64_t read_integer_attribute(const Handle& object, const std::string& name, const std::string& path);

}  // namespace muster::data::hdf5
