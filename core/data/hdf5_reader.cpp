#include "core/data/hdf5_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/files.h"
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

// The identifier that an HDF5 function has returned, or a Problem "PATH: what (reason)".
Handle valid(hid_t id, Handle::Close close, const std::string& path, const char* what, const char* advice = "") {
  if (id < 0) fail(path, "{}{}{}", what, reason(), advice);
  return Handle(id, close);
}

// Refuses a path that is not an HDF5 file before HDF5 sees it, with words for the common cases.
void check_is_hdf5(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw_io_error("open", path, errno);
  struct Closer {
    int descriptor;
    ~Closer() { close(descriptor); }
  } closer{descriptor};
  struct stat status {};
  if (fstat(descriptor, &status) != 0) throw_io_error("read", path, errno);
  if (!S_ISREG(status.st_mode)) throw Problem("is not a file; a dataset is one HDF5 file");
  if (status.st_size == 0) throw Problem("is empty (0 bytes)");
  // The signature stands at 0 or, after a user block, at a power of two from 512.
  for (int64_t position = 0; position < status.st_size; position = position ? 2 * position : 512) {
    char bytes[8] = {};
    if (const int error = read_bytes(descriptor, position, bytes, sizeof(bytes)); error > 0)
      throw_io_error("read", path, error);
    if (std::memcmp(bytes, "\x89HDF\r\n\x1a\n", 8) == 0) return;
  }
  throw Problem("is not an HDF5 file");
}

// A hard link is an object of this very file; every other kind names a place by text, maybe in another file.
void check_link(const Handle& parent, const std::string& name, const std::string& path) {
  // HDF5 would follow a name with a slash through links that were not checked.
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
    fail(path, "{} is no name of a dataset or group", in_quotes(name));
  const htri_t exists = H5Lexists(parent.get(), name.c_str(), H5P_DEFAULT);
  if (exists == 0) fail(path, "is missing");
  H5L_info_t info;
  if (exists < 0 || H5Lget_info(parent.get(), name.c_str(), &info, H5P_DEFAULT) < 0)
    fail(path, "cannot be looked up{}", reason());
  if (info.type == H5L_TYPE_HARD) return;
  const char* kind = info.type == H5L_TYPE_SOFT       ? "a soft link"
                     : info.type == H5L_TYPE_EXTERNAL ? "an external link"
                                                      : "a user-defined link";
  fail(path, "is {}; everything must be stored in the file itself, at its own place (copy the data there)", kind);
}

std::string filter_name(H5Z_filter_t filter) {
  static const std::map<H5Z_filter_t, const char*> names{{H5Z_FILTER_DEFLATE, "gzip"},
                                                         {H5Z_FILTER_SHUFFLE, "shuffle"},
                                                         {H5Z_FILTER_FLETCHER32, "fletcher32"},
                                                         {H5Z_FILTER_SZIP, "szip"},
                                                         {H5Z_FILTER_NBIT, "nbit"},
                                                         {H5Z_FILTER_SCALEOFFSET, "scaleoffset"},
                                                         {32000, "lzf"}};
  const auto found = names.find(filter);
  return found == names.end() ? fmt::format("filter {}", filter) : found->second;
}

// Also refuses filters that this HDF5 cannot undo, while there is still a good place to say so.
std::string filter_names(hid_t properties, const std::string& path) {
  std::string names;
  const int count = H5Pget_nfilters(properties);
  if (count < 0) fail(path, "its filters cannot be read{}", reason());
  for (int i = 0; i < count; ++i) {
    unsigned flags = 0, config = 0;
    size_t values = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(properties, static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, &config);
    if (filter < 0) fail(path, "its filters cannot be read{}", reason());
    if (H5Zfilter_avail(filter) <= 0)
      fail(path, "is compressed with {}, which this HDF5 library cannot read; store it uncompressed or with gzip",
           filter_name(filter));
    names += (names.empty() ? "" : "+") + filter_name(filter);
  }
  return names;
}

int64_t checked_product(int64_t left, int64_t right, const std::string& path) {
  int64_t product = 0;
  if (__builtin_mul_overflow(left, right, &product)) fail(path, "claims an impossible size");
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
  if (chunks > dataset.stored_bytes) fail(dataset.path, "has chunks that were never written");
  std::vector<hsize_t> corner(rank, 0);
  for (int64_t i = 0; i < chunks; ++i) {
    unsigned skipped = 0;
    haddr_t address = HADDR_UNDEF;
    hsize_t bytes = 0;
    if (H5Dget_chunk_info_by_coord(dataset.handle.get(), corner.data(), &skipped, &address, &bytes) < 0)
      fail(dataset.path, "its chunks cannot be read{}", reason());
    if (address == HADDR_UNDEF) fail(dataset.path, "has chunks that were never written");
    // Filters may be skipped where they would not have made a chunk smaller.
    const bool as_it_is = dataset.filters.empty() || skipped != 0;
    const auto end = static_cast<hsize_t>(file.bytes);
    if ((as_it_is && bytes < static_cast<hsize_t>(chunk_bytes)) || address > end || bytes > end - address)
      fail(dataset.path, "its chunks are damaged");
    for (size_t axis = rank; axis-- > 0;) {
      corner[axis] += chunk[axis];
      if (corner[axis] < static_cast<hsize_t>(dataset.shape[axis])) break;
      corner[axis] = 0;
    }
  }
}

// The values must be there: sizes in a damaged or hostile file may say anything.
void check_stored(const File& file, StoredDataset& dataset, hid_t properties) {
  int64_t bytes = dataset.type_bytes;
  for (const int64_t extent : dataset.shape) bytes = checked_product(bytes, extent, dataset.path);
  const auto fail_claim = [&](const std::string& truth) {
    fail(dataset.path, "claims {} bytes of values, but {}", bytes, truth);
  };
  const uint64_t stored = H5Dget_storage_size(dataset.handle.get());
  dataset.stored_bytes = static_cast<int64_t>(std::min<uint64_t>(stored, static_cast<uint64_t>(file.bytes)));
  if (dataset.layout == H5D_CONTIGUOUS) {
    const haddr_t address = H5Dget_offset(dataset.handle.get());
    if (bytes == 0) return;
    if (address == HADDR_UNDEF) fail_claim("none were ever written");
    if (address > static_cast<uint64_t>(file.bytes) || bytes > file.bytes - static_cast<int64_t>(address))
      fail_claim("the file ends before them: it is cut short or damaged");
    dataset.address = static_cast<int64_t>(address);
  } else if (dataset.layout == H5D_CHUNKED) {
    hsize_t chunk[H5S_MAX_RANK];
    const int rank = H5Pget_chunk(properties, H5S_MAX_RANK, chunk);
    if (rank != static_cast<int>(dataset.shape.size()) || std::count(chunk, chunk + rank, 0) != 0)
      fail(dataset.path, "its chunks cannot be read{}", reason());
    int64_t chunk_bytes = dataset.type_bytes;
    for (int i = 0; i < rank; ++i) {
      const auto extent = static_cast<int64_t>(std::min<hsize_t>(chunk[i], max_chunk_bytes + 1));
      chunk_bytes = checked_product(chunk_bytes, extent, dataset.path);
      if (chunk_bytes > max_chunk_bytes) fail(dataset.path, "has chunks of more than 1 GiB");
    }
    const int64_t possible = dataset.filters.empty()
                                 ? dataset.stored_bytes
                                 : checked_product(dataset.stored_bytes, max_compression, dataset.path);
    if (bytes > possible) fail_claim(fmt::format("only {} were ever written", dataset.stored_bytes));
    check_chunks(file, dataset, chunk, chunk_bytes);
  } else if (bytes > int64_t{1} << 16) {
    fail_claim("a compact dataset holds at most 65536");
  }
}

// Throws Problem when the link is missing, leads anywhere but into this file, or to another kind of object.
void check_object(const Handle& parent, const std::string& name, const std::string& path, H5I_type_t wanted,
                  const char* wanted_name, const char* advice) {
  check_link(parent, name, path);
  const Handle object =
      valid(H5Oopen(parent.get(), name.c_str(), H5P_DEFAULT), &H5Oclose, path, "cannot be opened", advice);
  if (H5Iget_type(object.get()) != wanted) fail(path, "is not a {}", wanted_name);
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
  return text.empty() ? "" : fmt::format(" ({})", text);
}

Handle file_access() {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), &H5Pclose);
  H5Pset_fapl_sec2(access.get());
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7) && !(H5_VERS_MAJOR == 1 && H5_VERS_MINOR == 12 && H5_VERS_RELEASE == 0)
  H5Pset_file_locking(access.get(), 0, 1);
#else
  setenv("HDF5_USE_FILE_LOCKING", "FALSE", 1);
#endif
  return access;
}

File open_file(const std::string& path) {
  check_is_hdf5(path);
  const Handle access = file_access();
  File file;
  file.handle = Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), &H5Fclose);
  if (!file.handle.valid())
    throw Problem("is cut short or damaged, or was not closed by its writer: HDF5 cannot open it" + reason());
  int* descriptor = nullptr;
  if (H5Fget_vfd_handle(file.handle.get(), H5P_DEFAULT, reinterpret_cast<void**>(&descriptor)) < 0 || !descriptor)
    throw Problem("cannot be read" + reason());
  file.descriptor = *descriptor;
  struct stat status {};
  if (fstat(file.descriptor, &status) != 0) throw_io_error("read", path, errno);
  file.bytes = status.st_size;
  return file;
}

int read_bytes(int descriptor, int64_t position, void* out, int64_t count) {
  char* next = static_cast<char*>(out);
  while (count > 0) {
    // Linux reads at most 2 GiB at a time.
    const ssize_t got = pread(descriptor, next, static_cast<size_t>(std::min(count, int64_t{1} << 30)), position);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got == 0 ? -1 : errno;
    next += got;
    position += got;
    count -= got;
  }
  return 0;
}

bool has_child(const Handle& group, const std::string& name) {
  return H5Lexists(group.get(), name.c_str(), H5P_DEFAULT) > 0;
}

std::vector<std::string> child_names(const Handle& group, const std::string& path) {
  H5G_info_t info;
  if (H5Gget_info(group.get(), &info) < 0) fail(path, "cannot be listed{}", reason());
  if (info.nlinks > static_cast<hsize_t>(max_children)) fail(path, "has {} entries", info.nlinks);
  std::vector<std::string> names;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    char name[1024];
    const ssize_t length =
        H5Lget_name_by_idx(group.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, name, sizeof(name), H5P_DEFAULT);
    if (length < 0) fail(path, "cannot be listed{}", reason());
    if (length >= static_cast<ssize_t>(sizeof(name)) || !is_valid_utf8(name))
      fail(path, "has an entry whose name is too long or not UTF-8: {}", in_quotes(name));
    names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Handle open_group(const Handle& parent, const std::string& name, const std::string& path) {
  check_object(parent, name, path, H5I_GROUP, "group", "");
  return valid(H5Gopen2(parent.get(), name.c_str(), H5P_DEFAULT), &H5Gclose, path, "cannot be opened");
}

StoredDataset open_dataset(const File& file, const Handle& parent, const std::string& name, const std::string& path) {
  check_object(parent, name, path, H5I_DATASET, "dataset", too_new);
  StoredDataset dataset;
  dataset.path = path;
  const Handle access(H5Pcreate(H5P_DATASET_ACCESS), &H5Pclose);
  H5Pset_chunk_cache(access.get(), 12421, chunk_cache_bytes, H5D_CHUNK_CACHE_W0_DEFAULT);
  dataset.handle =
      valid(H5Dopen2(parent.get(), name.c_str(), access.get()), &H5Dclose, path, "cannot be opened", too_new);

  // Before anything else is asked: even the extent of a virtual dataset is looked up in other files.
  const Handle properties = valid(H5Dget_create_plist(dataset.handle.get()), &H5Pclose, path, "cannot be opened");
  dataset.layout = H5Pget_layout(properties.get());
  if (dataset.layout == H5D_VIRTUAL)
    fail(path, "is a virtual dataset, whose values lie in other files; everything must be stored in the file itself");
  if (H5Pget_external_count(properties.get()) != 0)
    fail(path, "has external storage, values in another file; everything must be stored in the file itself");
  if (dataset.layout != H5D_CONTIGUOUS && dataset.layout != H5D_CHUNKED && dataset.layout != H5D_COMPACT)
    fail(path, "has an unknown storage layout{}", reason());
  dataset.filters = filter_names(properties.get(), path);

  const char* unreadable = "its type or shape cannot be read";
  dataset.type = valid(H5Dget_type(dataset.handle.get()), &H5Tclose, path, unreadable);
  dataset.type_bytes = static_cast<int64_t>(H5Tget_size(dataset.type.get()));
  const Handle space = valid(H5Dget_space(dataset.handle.get()), &H5Sclose, path, unreadable);
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) fail(path, "holds nothing (a null dataspace)");
  const int rank = H5Sget_simple_extent_ndims(space.get());
  hsize_t extents[H5S_MAX_RANK];
  if (rank < 0 || H5Sget_simple_extent_dims(space.get(), extents, nullptr) < 0)
    fail(path, "{}{}", unreadable, reason());
  for (int i = 0; i < rank; ++i) {
    if (extents[i] > static_cast<hsize_t>(std::numeric_limits<int64_t>::max())) fail(path, "claims an impossible size");
    dataset.shape.push_back(static_cast<int64_t>(extents[i]));
  }
  check_stored(file, dataset, properties.get());
  return dataset;
}

}  // namespace muster::data::hdf5
