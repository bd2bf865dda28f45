#include "core/data/writer.h"

#include <hdf5.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "core/data/hdf5_reader.h"

namespace muster::data {
namespace {

using hdf5::Handle;

constexpr int64_t block_elements = int64_t{1} << 20;  // 4 MiB of float32

[[noreturn]] void fail_to_write(const std::string& path, const std::string& why) {
  throw Error(ExitCode::kIo, fmt::format("Cannot write {}: {}.", path, why));
}

// About how many bytes the file will have.
uint64_t expected_bytes(const DatasetIndex& index) {
  uint64_t bytes = uint64_t{1} << 20;  // of headers
  for (const Modality& modality : index.modalities)
    bytes += static_cast<uint64_t>(modality.offsets.back() * modality.dim) * 4;
  bytes += static_cast<uint64_t>(index.size()) * (8 * index.modalities.size() + 200);
  for (const auto* strings : {&index.ids, &index.groups, &index.splits})
    for (const std::string& text : *strings) bytes += text.size();
  return bytes;
}

// A process that exceeds a limit on the size of files (ulimit -f) is killed by a signal.
void check_size_limit(const std::string& path, uint64_t bytes) {
  struct rlimit limit {};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < bytes)
    fail_to_write(path, fmt::format("it needs about {} bytes, but the limit on file size (ulimit -f) is {}", bytes,
                                    limit.rlim_cur));
}

// Writes everything but the frames, whose place it reserves.
class StructureWriter {
 public:
  // `temporary`: the file to write; `path` is for messages.
  StructureWriter(const std::string& path, const std::string& temporary) : path_(path) {
    const Handle access = hdf5::file_access();
    file_ = checked(Handle(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), &H5Fclose));
    string_type_ = checked(Handle(H5Tcopy(H5T_C_S1), &H5Tclose));
    check(H5Tset_size(string_type_.get(), H5T_VARIABLE));
    check(H5Tset_cset(string_type_.get(), H5T_CSET_UTF8));
  }

  // Place of each modality's frames in the file.
  std::vector<int64_t> write(const DatasetIndex& index) {
    write_attributes(index);
    const Handle samples = group(file_, "samples");
    write_strings(samples, "id", index.ids);
    write_strings(samples, "group", index.groups);
    write_strings(samples, "split", index.splits);
    if (index.has_labels()) {
      const bool rows = index.task == Task::kMultilabel;
      write_values(samples, "label", index.task == Task::kRegression ? H5T_IEEE_F32LE : H5T_STD_I64LE,
                   H5T_NATIVE_DOUBLE, index.labels.data(), index.labels.size(), rows ? index.class_names.size() : 0);
    }
    const Handle modalities = group(file_, "modalities");
    std::vector<int64_t> addresses;
    for (const Modality& modality : index.modalities) {
      const Handle folder = group(modalities, modality.name);
      write_values(folder, "offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, modality.offsets.data(),
                   modality.offsets.size());
      if (modality.kind == ModalityKind::kWaveform)
        write_attribute(folder, "sample_rate", H5T_STD_I64LE, H5T_NATIVE_INT64, scalar_space(), &modality.sample_rate);
      addresses.push_back(reserve(folder, modality));
    }
    check(H5Fflush(file_.get(), H5F_SCOPE_GLOBAL));
    check(H5Fclose(file_.release()));
    return addresses;
  }

 private:
  void check(herr_t status) const {
    if (status < 0) fail_to_write(path_, std::strerror(errno) + hdf5::reason());
  }
  Handle checked(Handle handle) const {
    check(handle.valid() ? 0 : -1);
    return handle;
  }
  Handle group(const Handle& parent, const std::string& name) const {
    return checked(Handle(H5Gcreate2(parent.get(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), &H5Gclose));
  }
  // Of datasets. Without times: the same data is the same bytes.
  Handle creation() const {
    Handle properties = checked(Handle(H5Pcreate(H5P_DATASET_CREATE), &H5Pclose));
    check(H5Pset_obj_track_times(properties.get(), false));
    return properties;
  }
  Handle vector_space(size_t count) const {
    const hsize_t extent = count;
    return checked(Handle(H5Screate_simple(1, &extent, nullptr), &H5Sclose));
  }

  Handle scalar_space() const { return checked(Handle(H5Screate(H5S_SCALAR), &H5Sclose)); }

  void write_attribute(const Handle& object, const char* name, hid_t file_type, hid_t memory_type, const Handle& space,
                       const void* value) const {
    const Handle attribute =
        checked(Handle(H5Acreate2(object.get(), name, file_type, space.get(), H5P_DEFAULT, H5P_DEFAULT), &H5Aclose));
    check(H5Awrite(attribute.get(), memory_type, value));
  }
  void write_attribute(const char* name, hid_t type, const Handle& space, const void* value) const {
    write_attribute(file_, name, type, type, space, value);
  }

  void write_attributes(const DatasetIndex& index) const {
    const Handle scalar = scalar_space();
    const int64_t version = 1;
    const char* format = "muster-dataset";
    const char* name = index.name.c_str();
    const char* task = name_of(index.task);
    write_attribute("format", string_type_.get(), scalar, &format);
    write_attribute("version", H5T_NATIVE_INT64, scalar, &version);
    write_attribute("name", string_type_.get(), scalar, &name);
    write_attribute("task", string_type_.get(), scalar, &task);
    if (index.task == Task::kRegression) return;
    const auto names = pointers(index.class_names);
    write_attribute("class_names", string_type_.get(), vector_space(names.size()), names.data());
  }

  static std::vector<const char*> pointers(const std::vector<std::string>& values) {
    std::vector<const char*> result;
    for (const std::string& value : values) result.push_back(value.c_str());
    return result;
  }

  void write_strings(const Handle& parent, const char* name, const std::vector<std::string>& values) const {
    write_values(parent, name, string_type_.get(), string_type_.get(), pointers(values).data(), values.size());
  }

  // columns: of values that are rows; 0: of a vector.
  void write_values(const Handle& parent, const char* name, hid_t file_type, hid_t memory_type, const void* values,
                    size_t count, size_t columns = 0) const {
    const hsize_t extents[2] = {columns > 0 ? count / columns : count, columns};
    const Handle space = checked(Handle(H5Screate_simple(columns > 0 ? 2 : 1, extents, nullptr), &H5Sclose));
    const Handle dataset = checked(Handle(
        H5Dcreate2(parent.get(), name, file_type, space.get(), H5P_DEFAULT, creation().get(), H5P_DEFAULT), &H5Dclose));
    check(H5Dwrite(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values));
  }

  int64_t reserve(const Handle& parent, const Modality& modality) const {
    const int64_t frames = modality.offsets.back();
    const hid_t type = modality.kind == ModalityKind::kTokens ? H5T_STD_I32LE : H5T_IEEE_F32LE;
    const hsize_t extents[2] = {static_cast<hsize_t>(frames), static_cast<hsize_t>(modality.dim)};
    const Handle space = checked(Handle(H5Screate_simple(2, extents, nullptr), &H5Sclose));
    const Handle properties = creation();
    check(H5Pset_layout(properties.get(), H5D_CONTIGUOUS));
    check(H5Pset_alloc_time(properties.get(), H5D_ALLOC_TIME_EARLY));
    check(H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER));
    const Handle dataset = checked(Handle(
        H5Dcreate2(parent.get(), "values", type, space.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT), &H5Dclose));
    const haddr_t address = H5Dget_offset(dataset.get());
    if (frames == 0) return -1;
    check(address == HADDR_UNDEF ? -1 : 0);
    return static_cast<int64_t>(address);
  }

  const std::string path_;
  Handle file_;
  Handle string_type_;
};

}  // namespace

void write_container(const std::string& path, const Dataset& dataset) {
  const DatasetIndex& index = dataset.index();
  const uint64_t expected = expected_bytes(index);
  check_size_limit(path, expected);
  AtomicFile file(path, expected);
  std::vector<int64_t> addresses;
  {
    const std::lock_guard<std::mutex> lock(hdf5::library_mutex());
    hdf5::prepare_library();
    addresses = StructureWriter(path, file.temporary_path()).write(index);
  }
  // Frames go past HDF5, which recovers badly from a full disk.
  std::vector<float> block;
  std::vector<int32_t> ids;
  for (size_t m = 0; m < index.modalities.size(); ++m) {
    const Modality& modality = index.modalities[m];
    const int64_t rows = std::max<int64_t>(1, block_elements / modality.dim);
    for (int64_t first = 0; first < modality.offsets.back(); first += rows) {
      const int64_t count = std::min(rows, modality.offsets.back() - first);
      block.resize(static_cast<size_t>(count * modality.dim));
      dataset.read_frames(static_cast<int64_t>(m), first, count, block.data());
      const char* bytes = reinterpret_cast<const char*>(block.data());
      if (modality.kind == ModalityKind::kTokens) {
        ids.assign(block.begin(), block.end());
        bytes = reinterpret_cast<const char*>(ids.data());
      }
      file.write_at(static_cast<uint64_t>(addresses[m] + first * modality.dim * 4), {bytes, block.size() * 4});
    }
  }
  file.commit();
}

}  // namespace muster::data
