#include "core/data/container.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "base/error.h"
#include "base/files.h"
#include "base/sha256.h"
#include "core/data/container_index.h"
#include "core/data/half.h"
#include "core/data/hdf5_reader.h"

namespace muster::data {
namespace {

constexpr int64_t convert_block = int64_t{1} << 16;  // elements converted at a time
constexpr int64_t hash_block = int64_t{8} << 20;     // bytes
constexpr size_t listed_problems = 20;

// float16 as h5py and numpy write it: HDF5 1.10 has no name for it.
hdf5::Handle half_type() {
  hdf5::Handle type(H5Tcopy(H5T_IEEE_F32LE), &H5Tclose);
  H5Tset_fields(type.get(), 15, 10, 5, 0, 10);
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), 15);
  return type;
}

// Values that read_direct() converts; kOther is left to HDF5.
enum class StoredType { kOther, kHalf, kFloat, kDouble, kInt16, kInt32, kInt64 };

StoredType stored_type(const hdf5::StoredDataset& values) {
  const auto is = [&](hid_t type) { return H5Tequal(values.type.get(), type) > 0; };
  if (is(H5T_IEEE_F32LE)) return StoredType::kFloat;
  if (is(H5T_IEEE_F64LE)) return StoredType::kDouble;
  if (is(H5T_STD_I16LE)) return StoredType::kInt16;
  if (is(H5T_STD_I32LE)) return StoredType::kInt32;
  if (is(H5T_STD_I64LE)) return StoredType::kInt64;
  return is(half_type().get()) ? StoredType::kHalf : StoredType::kOther;
}

// Contiguous little-endian values.
bool is_direct(const hdf5::StoredDataset& values) {
  return values.layout == H5D_CONTIGUOUS && values.filters.empty() && stored_type(values) != StoredType::kOther;
}

// int16 of a waveform is a fraction of this.
constexpr float full_scale = 32768;

template <typename Stored, typename Convert>
void convert_values(const char* bytes, int64_t count, float* out, Convert&& convert) {
  for (int64_t i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, bytes + i * static_cast<int64_t>(sizeof(value)), sizeof(value));
    out[i] = convert(value);
  }
}

// Values of type `type` to float32.
void convert_values(StoredType type, const char* bytes, int64_t count, float* out) {
  const auto rounded = [](auto value) { return static_cast<float>(value); };
  switch (type) {
    case StoredType::kHalf:
      return convert_values<uint16_t>(bytes, count, out, half_to_float);
    case StoredType::kInt16:
      return convert_values<int16_t>(bytes, count, out, [](int16_t value) { return value / full_scale; });
    case StoredType::kInt32:
      return convert_values<int32_t>(bytes, count, out, rounded);
    case StoredType::kInt64:
      return convert_values<int64_t>(bytes, count, out, rounded);
    case StoredType::kDouble:
      return convert_values<double>(bytes, count, out, rounded);
    case StoredType::kFloat:
    case StoredType::kOther:
      throw std::logic_error("convert_values: nothing to convert");
  }
}

FrameStorage describe_storage(const hdf5::StoredDataset& values) {
  FrameStorage storage;
  storage.direct = is_direct(values);
  storage.type = fmt::format("{}{}{}", values.type_class() == H5T_INTEGER ? "int" : "float", 8 * values.type_bytes,
                             H5Tget_order(values.type.get()) == H5T_ORDER_BE ? " big-endian" : "");
  storage.layout = values.layout == H5D_CHUNKED ? "chunked" : values.layout == H5D_COMPACT ? "compact" : "contiguous";
  if (!values.filters.empty()) storage.layout += ", " + values.filters;
  storage.stored_bytes = values.stored_bytes;
  return storage;
}

class FileContainer : public Container {
 public:
  FileContainer(const std::string& path, hdf5::File file, ContainerIndex contents)
      : path_(path), file_(std::move(file)), tables_(std::move(contents.values)) {
    index_ = std::move(contents.index);
    targets_ = std::move(contents.targets);
    file_bytes_ = file_.bytes;
    for (const hdf5::StoredDataset& values : tables_) {
      storage_.push_back(describe_storage(values));
      types_.push_back(stored_type(values));
    }
  }

  ~FileContainer() override {
    const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
    tables_.clear();
    file_.handle.reset();
  }

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    const hdf5::StoredDataset& table = tables_.at(static_cast<size_t>(modality));
    const int64_t frames = table.shape[0];
    if (first < 0 || count < 0 || first > frames || count > frames - first)
      throw std::out_of_range("read_frames: no such frames");
    if (count == 0) return;
    if (storage_[static_cast<size_t>(modality)].direct) {
      read_direct(table, types_[static_cast<size_t>(modality)], first, count, out);
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

 private:
  void read_bytes(int64_t position, int64_t bytes, void* out) const {
    const int error = hdf5::read_bytes(file_.descriptor, position, out, bytes);
    if (error > 0) throw_io_error("read", path_, error);
    if (error < 0) throw Error(ExitCode::kBadData, fmt::format("{} became shorter while it was being read.", path_));
  }

  void read_direct(const hdf5::StoredDataset& table, StoredType type, int64_t first, int64_t count, float* out) const {
    const int64_t dim = table.shape[1];
    const int64_t element_bytes = table.type_bytes;
    int64_t position = table.address + first * dim * element_bytes;
    const int64_t elements = count * dim;
    if (type == StoredType::kFloat) return read_bytes(position, elements * element_bytes, out);
    std::vector<char> block(static_cast<size_t>(std::min(elements, convert_block) * element_bytes));
    for (int64_t done = 0; done < elements; done += convert_block) {
      const int64_t now = std::min(convert_block, elements - done);
      read_bytes(position, now * element_bytes, block.data());
      convert_values(type, block.data(), now, out + done);
      position += now * element_bytes;
    }
  }

  void read_through_hdf5(const hdf5::StoredDataset& table, int64_t first, int64_t count, float* out) const {
    const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
    const hsize_t start[2] = {static_cast<hsize_t>(first), 0};
    const hsize_t extent[2] = {static_cast<hsize_t>(count), static_cast<hsize_t>(table.shape[1])};
    const hdf5::Handle file_space(H5Dget_space(table.handle.get()), &H5Sclose);
    const hdf5::Handle memory_space(H5Screate_simple(2, extent, nullptr), &H5Sclose);
    if (!file_space.valid() || !memory_space.valid() ||
        H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start, nullptr, extent, nullptr) < 0 ||
        H5Dread(table.handle.get(), H5T_NATIVE_FLOAT, memory_space.get(), file_space.get(), H5P_DEFAULT, out) < 0)
      throw Error(ExitCode::kBadData, fmt::format("{}: {}: frames {} to {} cannot be read; the file is damaged{}.",
                                                  path_, table.path, first, first + count, hdf5::reason()));
    if (table.type_class() != H5T_INTEGER || table.type_bytes != 2) return;
    for (int64_t i = 0; i < count * table.shape[1]; ++i) out[i] /= full_scale;
  }

  const std::string path_;
  hdf5::File file_;
  std::vector<hdf5::StoredDataset> tables_;
  std::vector<StoredType> types_;  // as tables_
};

// What is wrong with the file. Call with hdf5::library_mutex() held.
Problems read_structure(const std::string& path, const OpenOptions& options, hdf5::File& file,
                        ContainerIndex& contents) {
  hdf5::prepare_library();
  Problems problems(path, listed_problems);
  problems.attempt([&] {
    file = hdf5::open_file(path);
    contents = read_container_index(file, path, options, problems);
  });
  return problems;
}

}  // namespace

std::unique_ptr<Container> open_container(const std::string& path, const OpenOptions& options) {
  const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
  hdf5::File file;
  ContainerIndex contents;
  const Problems problems = read_structure(path, options, file, contents);
  if (const auto lines = problems.lines(); lines.size() == 1)
    throw Error(ExitCode::kBadData, fmt::format("{}: {}.", path, lines[0]));
  problems.throw_if_any(ExitCode::kBadData);
  return std::make_unique<FileContainer>(path, std::move(file), std::move(contents));
}

std::vector<std::string> container_problems(const std::string& path, const OpenOptions& options) {
  const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
  hdf5::File file;
  ContainerIndex contents;
  return read_structure(path, options, file, contents).lines();
}

bool is_container(const std::string& path) {
  try {
    const hdf5::File file = hdf5::open_file(path);
    const hdf5::Handle root(H5Gopen2(file.handle.get(), "/", H5P_DEFAULT), &H5Gclose);
    return root.valid() && hdf5::has_attribute(root, "format") &&
           hdf5::read_one_string_attribute(root, "format", "/") == "muster-dataset";
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace muster::data
