#include "core/data/container.h"
#include "base/sha256.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "base/error.h"
#include "base/sha256.h"
#include "core/data/container_index.h"
#include "core/data/half.h"
#include "core/data/hdf5_reader.h"

namespace muster::data {
namespace {

constexpr int64_t convert_block = int64_t{1} << 16;  // elements converted at a time
constexpr int64_t hash_block = int64_t{8} << 20;     // bytes

enum class Element { kFloat16, kFloat32, kFloat64, kOther };

// float16 as h5py and numpy write it: HDF5 1.10 has no name for it.
hdf5::Handle half_type() {
  hdf5::Handle type(H5Tcopy(H5T_IEEE_F32LE), &H5Tclose);
  H5Tset_fields(type.get(), 15, 10, 5, 0, 10);
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), 15);
  return type;
}

Element element_of(hid_t type) {
  if (H5Tequal(type, H5T_IEEE_F32LE) > 0) return Element::kFloat32;
  if (H5Tequal(type, H5T_IEEE_F64LE) > 0) return Element::kFloat64;
  if (H5Tequal(type, half_type().get()) > 0) return Element::kFloat16;
  return Element::kOther;
}

int64_t bytes_of(Element element) { return element == Element::kFloat16 ? 2 : element == Element::kFloat32 ? 4 : 8; }

FrameStorage describe_storage(const hdf5::StoredDataset& values, bool direct) {
  FrameStorage storage;
  storage.direct = direct;
  storage.type = "float" + std::to_string(8 * values.type_bytes());
  if (H5Tget_order(values.type.get()) == H5T_ORDER_BE) storage.type += " big-endian";
  storage.layout = values.layout == H5D_CHUNKED ? "chunked" : values.layout == H5D_COMPACT ? "compact" : "contiguous";
  if (!values.filters.empty()) storage.layout += ", " + values.filters;
  storage.stored_bytes = values.stored_bytes;
  return storage;
}

class FileContainer : public Container {
 public:
  FileContainer(const std::string& path, hdf5::File file, ContainerIndex contents)
      : path_(path), file_(std::move(file)), file_bytes_(file_.bytes), targets_(std::move(contents.targets)) {
    index_ = std::move(contents.index);
    for (hdf5::StoredDataset& values : contents.values) {
      Element element = element_of(values.type.get());
      const bool direct = values.layout == H5D_CONTIGUOUS && element != Element::kOther && values.filters.empty();
      storage_.push_back(describe_storage(values, direct));
      tables_.push_back({std::move(values), element, direct});
    }
  }

  ~FileContainer() override {
    const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
    tables_.clear();
    file_.handle.reset();
  }

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    const Table& table = tables_.at(static_cast<size_t>(modality));
    const int64_t frames = table.values.shape[0];
    if (first < 0 || count < 0 || first > frames || count > frames - first)
      throw std::out_of_range("read_frames: no such frames");
    if (count == 0) return;
    if (table.direct) {
      read_direct(table, first, count, out);
    } else {
      read_through_hdf5(table, first, count, out);
    }
  }

  std::string content_hash() const override {
    Sha256 hash;
    std::vector<char> block(static_cast<size_t>(hash_block));
    for (int64_t position = 0; position < file_bytes_; position += hash_block) {
      const int64_t bytes = std::min(hash_block, file_bytes_ - position);
      read_bytes(position, bytes, block.data());
      hash.update({block.data(), static_cast<size_t>(bytes)});
    }
    return hash.hex();
  }

  std::string source() const override { return path_; }
  const std::vector<FrameStorage>& storage() const override { return storage_; }
  int64_t file_bytes() const override { return file_bytes_; }
  const std::vector<std::string>& targets() const override { return targets_; }

 private:
  struct Table {
    hdf5::StoredDataset values;
    Element element;
    bool direct;
  };

  void read_bytes(int64_t position, int64_t bytes, void* out) const {
    char* next = static_cast<char*>(out);
    while (bytes > 0) {
      const size_t request =
          static_cast<size_t>(std::min<int64_t>(bytes, int64_t{1} << 30));  // Linux reads at most 2 GiB
      const ssize_t got = pread(file_.descriptor, next, request, position);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw Error(ExitCode::kIo, "cannot read " + path_ + ": " + std::strerror(errno) + ".");
      if (got == 0) throw Error(ExitCode::kBadData, path_ + " became shorter while it was being read.");
      next += got;
      position += got;
      bytes -= got;
    }
  }

  void read_direct(const Table& table, int64_t first, int64_t count, float* out) const {
    const int64_t dim = table.values.shape[1];
    const int64_t element_bytes = bytes_of(table.element);
    int64_t position = table.values.address + first * dim * element_bytes;
    if (table.element == Element::kFloat32) {
      read_bytes(position, count * dim * element_bytes, out);
      return;
    }
    const int64_t elements = count * dim;
    std::vector<char> block(static_cast<size_t>(std::min(elements, convert_block) * element_bytes));
    for (int64_t done = 0; done < elements; done += convert_block) {
      const int64_t now = std::min(convert_block, elements - done);
      read_bytes(position, now * element_bytes, block.data());
      for (int64_t i = 0; i < now; ++i) {
        if (table.element == Element::kFloat16) {
          uint16_t half;
          std::memcpy(&half, block.data() + 2 * i, 2);
          out[done + i] = half_to_float(half);
        } else {
          double value;
          std::memcpy(&value, block.data() + 8 * i, 8);
          out[done + i] = static_cast<float>(value);
        }
      }
      position += now * element_bytes;
    }
  }

  void read_through_hdf5(const Table& table, int64_t first, int64_t count, float* out) const {
    const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
    const hsize_t start[2] = {static_cast<hsize_t>(first), 0};
    const hsize_t extent[2] = {static_cast<hsize_t>(count), static_cast<hsize_t>(table.values.shape[1])};
    const hdf5::Handle file_space(H5Dget_space(table.values.handle.get()), &H5Sclose);
    const hdf5::Handle memory_space(H5Screate_simple(2, extent, nullptr), &H5Sclose);
    if (!file_space.valid() || !memory_space.valid() ||
        H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start, nullptr, extent, nullptr) < 0 ||
        H5Dread(table.values.handle.get(), H5T_NATIVE_FLOAT, memory_space.get(), file_space.get(), H5P_DEFAULT, out) <
            0) {
      const std::string why = hdf5::reason();
      throw Error(ExitCode::kBadData, path_ + ": " + table.values.path + ": frames " + std::to_string(first) + " to " +
                                          std::to_string(first + count) + " cannot be read; the file is damaged" + why +
                                          ".");
    }
  }

  const std::string path_;
  hdf5::File file_;
  const int64_t file_bytes_;
  const std::vector<std::string> targets_;
  std::vector<Table> tables_;
  std::vector<FrameStorage> storage_;
};

}  // namespace

std::unique_ptr<Container> open_container(const std::string& path, const OpenOptions& options) {
  const std::unique_lock<std::mutex> lock(hdf5::library_mutex());
  hdf5::prepare_library();
  Problems problems(path, kListedProblems);
  hdf5::File file;
  ContainerIndex contents;
  problems.attempt([&] {
    file = hdf5::open_file(path);
    contents = read_container_index(file, path, options, problems);
  });
  if (const auto lines = problems.lines(); lines.size() == 1)
    throw Error(ExitCode::kBadData, path + ": " + lines[0] + ".");
  problems.throw_if_any(ExitCode::kBadData);
  return std::make_unique<FileContainer>(path, std::move(file), std::move(contents));
}

}  // namespace muster::data
