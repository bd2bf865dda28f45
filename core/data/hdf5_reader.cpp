#include "core/data/hdf5_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/text.h"
#include "base/utf8.h"

namespace muster::data::hdf5 {
namespace {

constexpr int64_t max_chunk_bytes = int64_t{1} << 30;
constexpr size_t chunk_cache_bytes = size_t{64} << 20;
// Deflate cannot shrink data by more than 1,032:1; whoever claims more has not stored the values.
constexpr int64_t max_compression = 1100;
constexpr int64_t max_children = 10000;
constexpr const char* too_new = "; it is damaged, or in a newer format than this HDF5 library (" H5_VERS_INFO
                                ") reads (h5py: do not write with libver='latest')";

herr_t innermost(unsigned, const H5E_error2_t* error, void* text) {
  *static_cast<std::string*>(text) = error->desc ? error->desc : "";
  return 1;  // stop
}

// Refuses a path that is not an HDF5 file before HDF5 sees it, with words for the common cases.
void check_is_hdf5(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw Error(ExitCode::kIo, "cannot open " + path + ": " + std::strerror(errno) + ".");
  struct Closer {
    int descriptor;
    ~Closer() { close(descriptor); }
  } closer{descriptor};
  struct stat status {};
  if (fstat(descriptor, &status) != 0)
    throw Error(ExitCode::kIo, "cannot read " + path + ": " + std::strerror(errno) + ".");
  if (!S_ISREG(status.st_mode)) throw Problem("is not a file; a dataset is one HDF5 file");
  if (status.st_size == 0) throw Problem("is empty (0 bytes)");
  // The signature stands at 0 or, after a user block, at a power of two from 512.
  for (int64_t position = 0; position < status.st_size; position = position ? 2 * position : 512) {
    char bytes[8];
    const ssize_t got = pread(descriptor, bytes, sizeof(bytes), position);
    if (got < 0) throw Error(ExitCode::kIo, "cannot read " + path + ": " + std::strerror(errno) + ".");
    if (got == 8 && std::memcmp(bytes, "\x89HDF\r\n\x1a\n", 8) == 0) return;
  }
  throw Problem("is not an HDF5 file");
}

// A hard link is an object of this very file; every other kind names a place by text, maybe in another file.
void check_link(const Handle& parent, const std::string& name, const std::string& path) {
  // A name with a slash would walk on through links that nobody has looked at.
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
    throw Problem(path + ": " + in_quotes(name) + " is no name of a dataset or group");
  const htri_t exists = H5Lexists(parent.get(), name.c_str(), H5P_DEFAULT);
  if (exists < 0) throw Problem(path + ": cannot be looked up" + reason());
  if (exists == 0) throw Problem(path + ": is missing");
  H5L_info_t info;
  if (H5Lget_info(parent.get(), name.c_str(), &info, H5P_DEFAULT) < 0)
    throw Problem(path + ": cannot be looked up" + reason());
  if (info.type == H5L_TYPE_HARD) return;
  const std::string kind = info.type == H5L_TYPE_SOFT       ? "a soft link"
                           : info.type == H5L_TYPE_EXTERNAL ? "an external link"
                                                            : "a user-defined link";
  throw Problem(path + ": is " + kind +
                "; everything must be stored in the file itself, at its own place (copy the data there)");
}

std::string filter_name(H5Z_filter_t filter) {
  switch (filter) {
    case H5Z_FILTER_DEFLATE:
      return "gzip";
    case H5Z_FILTER_SHUFFLE:
      return "shuffle";
    case H5Z_FILTER_FLETCHER32:
      return "fletcher32";
    case H5Z_FILTER_SZIP:
      return "szip";
    case H5Z_FILTER_NBIT:
      return "nbit";
    case H5Z_FILTER_SCALEOFFSET:
      return "scaleoffset";
    case 32000:
      return "lzf";
    default:
      return "filter " + std::to_string(filter);
  }
}

// Also refuses filters that this HDF5 cannot undo, while there is still a good place to say so.
std::string filter_names(hid_t properties, const std::string& path) {
  std::string names;
  const int count = H5Pget_nfilters(properties);
  if (count < 0) throw Problem(path + ": its filters cannot be read" + reason());
  for (int i = 0; i < count; ++i) {
    unsigned flags = 0, config = 0;
    size_t values = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(properties, static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, &config);
    if (filter < 0) throw Problem(path + ": its filters cannot be read" + reason());
    if (H5Zfilter_avail(filter) <= 0)
      throw Problem(path + ": is compressed with " + filter_name(filter) +
                    ", which this HDF5 library cannot read; store it uncompressed or with gzip");
    names += (names.empty() ? "" : "+") + filter_name(filter);
  }
  return names;
}

int64_t checked_product(int64_t left, int64_t right, const std::string& path) {
  int64_t product = 0;
  if (__builtin_mul_overflow(left, right, &product)) throw Problem(path + ": claims an impossible size");
  return product;
}

// HDF5 copies a whole chunk out of a buffer that is as long as what it found in the file: a chunk whose filters are
// marked as skipped, or that is too short, would make it read past the end of that buffer.
void check_chunks(const File& file, const StoredDataset& dataset, const hsize_t* chunk, int64_t chunk_bytes) {
  const size_t rank = dataset.shape.size();
  int64_t chunks = 1;
  for (size_t i = 0; i < rank; ++i) {
    const auto extent = static_cast<int64_t>(chunk[i]);
    chunks = checked_product(chunks, dataset.shape[i] / extent + (dataset.shape[i] % extent != 0), dataset.path);
  }
  if (chunks > dataset.stored_bytes) throw Problem(dataset.path + ": has chunks that were never written");
  std::vector<hsize_t> corner(rank, 0);
  for (int64_t i = 0; i < chunks; ++i) {
    unsigned skipped = 0;
    haddr_t address = HADDR_UNDEF;
    hsize_t bytes = 0;
    if (H5Dget_chunk_info_by_coord(dataset.handle.get(), corner.data(), &skipped, &address, &bytes) < 0)
      throw Problem(dataset.path + ": its chunks cannot be read" + reason());
    if (address == HADDR_UNDEF) throw Problem(dataset.path + ": has chunks that were never written");
    // Filters are skipped by right where they would not have made a chunk smaller.
    const bool as_it_is = dataset.filters.empty() || skipped != 0;
    const auto end = static_cast<hsize_t>(file.bytes);
    if ((as_it_is && bytes < static_cast<hsize_t>(chunk_bytes)) || address > end || bytes > end - address)
      throw Problem(dataset.path + ": its chunks are damaged");
    for (size_t axis = rank; axis-- > 0;) {
      corner[axis] += chunk[axis];
      if (corner[axis] < static_cast<hsize_t>(dataset.shape[axis])) break;
      corner[axis] = 0;
    }
  }
}

// The values must be there: sizes in a damaged or hostile file may say anything.
void check_stored(const File& file, StoredDataset& dataset, hid_t properties) {
  int64_t bytes = dataset.type_bytes();
  for (const int64_t extent : dataset.shape) bytes = checked_product(bytes, extent, dataset.path);
  const auto claims = [&] { return dataset.path + ": claims " + std::to_string(bytes) + " bytes of values, but "; };
  const uint64_t stored = H5Dget_storage_size(dataset.handle.get());
  dataset.stored_bytes = static_cast<int64_t>(std::min<uint64_t>(stored, static_cast<uint64_t>(file.bytes)));
  if (dataset.layout == H5D_CONTIGUOUS) {
    const haddr_t address = H5Dget_offset(dataset.handle.get());
    if (bytes == 0) return;
    if (address == HADDR_UNDEF) throw Problem(claims() + "none were ever written");
    if (address > static_cast<uint64_t>(file.bytes) || bytes > file.bytes - static_cast<int64_t>(address))
      throw Problem(claims() + "the file ends before them: it is cut short or damaged");
    dataset.address = static_cast<int64_t>(address);
  } else if (dataset.layout == H5D_CHUNKED) {
    hsize_t chunk[H5S_MAX_RANK];
    const int rank = H5Pget_chunk(properties, H5S_MAX_RANK, chunk);
    if (rank != static_cast<int>(dataset.shape.size()))
      throw Problem(dataset.path + ": its chunks cannot be read" + reason());
    int64_t chunk_bytes = dataset.type_bytes();
    for (int i = 0; i < rank; ++i) {
      if (chunk[i] > static_cast<hsize_t>(max_chunk_bytes))
        throw Problem(dataset.path + ": has chunks of more than 1 GiB");
      if (chunk[i] == 0) throw Problem(dataset.path + ": its chunks cannot be read");
      chunk_bytes = checked_product(chunk_bytes, static_cast<int64_t>(chunk[i]), dataset.path);
    }
    if (chunk_bytes > max_chunk_bytes) throw Problem(dataset.path + ": has chunks of more than 1 GiB");
    const int64_t possible = dataset.filters.empty()
                                 ? dataset.stored_bytes
                                 : checked_product(dataset.stored_bytes, max_compression, dataset.path);
    if (bytes > possible)
      throw Problem(claims() + "only " + std::to_string(dataset.stored_bytes) + " were ever written");
    check_chunks(file, dataset, chunk, chunk_bytes);
  } else if (bytes > int64_t{1} << 16) {
    throw Problem(claims() + "a compact dataset holds at most 65536");
  }
}

}  // namespace

std::mutex& library_mutex() {
  static std::mutex mutex;
  return mutex;
}

void prepare_library() {
  // After a failed write (full disk) HDF5 1.10 cannot close its file, and its clean-up at exit crashes. Nothing needs
  // that clean-up: whoever opens a file here closes it.
  static const herr_t once = H5dont_atexit();
  static_cast<void>(once);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

std::string reason() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, &innermost, &text);
  return text.empty() ? "" : " (" + text + ")";
}

File open_file(const std::string& path) {
  check_is_hdf5(path);
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), &H5Pclose);
  H5Pset_fapl_sec2(access.get());
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7) && !(H5_VERS_MAJOR == 1 && H5_VERS_MINOR == 12 && H5_VERS_RELEASE == 0)
  H5Pset_file_locking(access.get(), 0, 1);
#else
  setenv("HDF5_USE_FILE_LOCKING", "FALSE", 1);
#endif
  File file;
  file.handle = Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), &H5Fclose);
  if (!file.handle.valid())
    throw Problem("is cut short or damaged, or was not closed by its writer: HDF5 cannot open it" + reason());
  int* descriptor = nullptr;
  if (H5Fget_vfd_handle(file.handle.get(), H5P_DEFAULT, reinterpret_cast<void**>(&descriptor)) < 0 || !descriptor)
    throw Problem("cannot be read" + reason());
  file.descriptor = *descriptor;
  struct stat status {};
  if (fstat(file.descriptor, &status) != 0)
    throw Error(ExitCode::kIo, "cannot read " + path + ": " + std::strerror(errno) + ".");
  file.bytes = status.st_size;
  return file;
}

bool has_child(const Handle& group, const std::string& name) {
  return H5Lexists(group.get(), name.c_str(), H5P_DEFAULT) > 0;
}

std::vector<std::string> child_names(const Handle& group, const std::string& path) {
  H5G_info_t info;
  if (H5Gget_info(group.get(), &info) < 0) throw Problem(path + ": cannot be listed" + reason());
  if (info.nlinks > static_cast<hsize_t>(max_children))
    throw Problem(path + ": has " + std::to_string(info.nlinks) + " entries");
  std::vector<std::string> names;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    char name[1024];
    const ssize_t length =
        H5Lget_name_by_idx(group.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof(name), H5P_DEFAULT);
    if (length < 0) throw Problem(path + ": cannot be listed" + reason());
    if (length >= static_cast<ssize_t>(sizeof(name)) || !is_valid_utf8(name))
      throw Problem(path + ": has an entry whose name is too long or not UTF-8: " + in_quotes(name));
    names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Handle open_group(const Handle& parent, const std::string& name, const std::string& path) {
  check_link(parent, name, path);
  const Handle object(H5Oopen(parent.get(), name.c_str(), H5P_DEFAULT), &H5Oclose);
  if (!object.valid()) throw Problem(path + ": cannot be opened" + reason());
  if (H5Iget_type(object.get()) != H5I_GROUP) throw Problem(path + ": is not a group");
  Handle group(H5Gopen2(parent.get(), name.c_str(), H5P_DEFAULT), &H5Gclose);
  if (!group.valid()) throw Problem(path + ": cannot be opened" + reason());
  return group;
}

StoredDataset open_dataset(const File& file, const Handle& parent, const std::string& name, const std::string& path) {
  check_link(parent, name, path);
  {
    const Handle object(H5Oopen(parent.get(), name.c_str(), H5P_DEFAULT), &H5Oclose);
    if (!object.valid()) throw Problem(path + ": cannot be opened" + reason() + too_new);
    if (H5Iget_type(object.get()) != H5I_DATASET) throw Problem(path + ": is not a dataset");
  }
  StoredDataset dataset;
  dataset.path = path;
  const Handle access(H5Pcreate(H5P_DATASET_ACCESS), &H5Pclose);
  H5Pset_chunk_cache(access.get(), 12421, chunk_cache_bytes, H5D_CHUNK_CACHE_W0_DEFAULT);
  dataset.handle = Handle(H5Dopen2(parent.get(), name.c_str(), access.get()), &H5Dclose);
  if (!dataset.handle.valid()) throw Problem(path + ": cannot be opened" + reason() + too_new);

  // Before anything else is asked: even the extent of a virtual dataset is looked up in other files.
  const Handle properties(H5Dget_create_plist(dataset.handle.get()), &H5Pclose);
  if (!properties.valid()) throw Problem(path + ": cannot be opened" + reason());
  dataset.layout = H5Pget_layout(properties.get());
  if (dataset.layout == H5D_VIRTUAL)
    throw Problem(
        path + ": is a virtual dataset, whose values lie in other files; everything must be stored in the file itself");
  if (H5Pget_external_count(properties.get()) != 0)
    throw Problem(path +
                  ": has external storage, values in another file; everything must be stored in the file itself");
  if (dataset.layout != H5D_CONTIGUOUS && dataset.layout != H5D_CHUNKED && dataset.layout != H5D_COMPACT)
    throw Problem(path + ": has an unknown storage layout" + reason());
  dataset.filters = filter_names(properties.get(), path);

  dataset.type = Handle(H5Dget_type(dataset.handle.get()), &H5Tclose);
  const Handle space(H5Dget_space(dataset.handle.get()), &H5Sclose);
  if (!dataset.type.valid() || !space.valid()) throw Problem(path + ": its type or shape cannot be read" + reason());
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) throw Problem(path + ": holds nothing (a null dataspace)");
  const int rank = H5Sget_simple_extent_ndims(space.get());
  hsize_t extents[H5S_MAX_RANK];
  if (rank < 0 || H5Sget_simple_extent_dims(space.get(), extents, nullptr) < 0)
    throw Problem(path + ": its shape cannot be read" + reason());
  for (int i = 0; i < rank; ++i) {
    if (extents[i] > static_cast<hsize_t>(std::numeric_limits<int64_t>::max()))
      throw Problem(path + ": claims an impossible size");
    dataset.shape.push_back(static_cast<int64_t>(extents[i]));
  }
  check_stored(file, dataset, properties.get());
  return dataset;
}

}  // namespace muster::data::hdf5
