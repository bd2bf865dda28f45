#include "checkpoints/commit.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/atomic_file.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "checkpoints/folders.h"

namespace muster::checkpoints {
namespace {

constexpr std::size_t kPiece = 8 << 20;
constexpr const char* kAdvice =
    "Free some space; `muster checkpoints prune` removes checkpoints that are kept but not needed";

[[noreturn]] void throw_with_free_space(const std::string& what, const std::string& path, int error) {
  std::string message = fmt::format("could not {} {}: {}", what, path, std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) {
    if (const std::string free = free_space_text(parent_of(path)); !free.empty()) message += fmt::format(" ({})", free);
    message += fmt::format(". {}", kAdvice);
  }
  throw Error(ExitCode::kIo, message + ".");
}

// The errno of a device that failed, after which the same bytes may succeed elsewhere; 0 when the file is written and
// closed. Other failures throw.
int try_to_write(const std::string& path, const std::vector<std::string_view>& contents, CheckpointFile& written) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_with_free_space("create", path, errno);
  std::string what = "write to";
  int error = 0;
  written.size = 0;
  written.crc32c = 0;
  for (std::string_view rest : contents) {
    while (!rest.empty() && error == 0) {
      const std::string_view piece = rest.substr(0, kPiece);
      error = try_write_all(descriptor, piece);
      written.crc32c = crc32c(piece, written.crc32c);
      written.size += piece.size();
      rest.remove_prefix(piece.size());
    }
  }
  while (error == 0 && ::fsync(descriptor) != 0) {
    what = "flush to the device";
    if (errno != EINTR) error = errno;
  }
  // Network file systems may report a full disk only here. After EINTR the descriptor is closed all the same.
  if (::close(descriptor) != 0 && error == 0 && errno != EINTR) error = errno, what = "close";
  if (error == 0) return 0;
  if (::unlink(path.c_str()) != 0) throw_with_free_space("remove the failed", path, errno);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) throw_with_free_space(what, path, error);
  return error;
}

// name_of_try(0), or of the next ones when the device fails.
template <typename NameOfTry>
CheckpointFile write_through(const std::string& folder, const std::vector<std::string_view>& contents,
                             NameOfTry name_of_try) {
  for (int retry = 0;; ++retry) {
    CheckpointFile file;
    file.name = name_of_try(retry);
    const int error = try_to_write(folder + "/" + file.name, contents, file);
    if (error == 0) return file;
    if (retry == kMostRetries) {
      throw_with_free_space(fmt::format("write, in {} attempts,", kMostRetries + 1), folder + "/" + file.name, error);
    }
  }
}

// What other ranks have written already counts as written.
void require_space(const std::string& folder, uint64_t bytes) {
  const auto space = free_space(folder);
  if (!space) return;
  uint64_t present = 0;
  for (const std::string& name : list_folder(folder)) {
    struct stat status;
    if (::stat((folder + "/" + name).c_str(), &status) == 0) present += static_cast<uint64_t>(status.st_size);
  }
  const uint64_t missing = bytes > present ? bytes - present : 0;
  if (missing <= space->free) return;
  throw Error(ExitCode::kIo, fmt::format("the checkpoint needs {} more in {}, where {} are free. {}.",
                                         size_text(static_cast<double>(missing)), parent_of(folder),
                                         size_text(static_cast<double>(space->free)), kAdvice));
}

// Moves a checkpoint that has the name already out of the way. Returns its new path: it is moved back if the commit
// fails.
std::string make_way(const SaveAttempt& attempt) {
  struct stat status;
  if (::lstat(attempt.committed().c_str(), &status) != 0) return {};
  bool whole = true;
  try {
    verify_checkpoint(attempt.committed());
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
    whole = false;
  }
  const std::string aside =
      attempt.folder + "/" + hidden_name(whole ? Purpose::kReplaced : Purpose::kDamaged, attempt.step, attempt.uuid);
  rename_folder(attempt.committed(), aside);
  return aside;
}

}  // namespace

std::string SaveAttempt::temporary() const { return folder + "/" + hidden_name(Purpose::kWriting, step, uuid); }

std::string SaveAttempt::committed() const { return folder + "/" + step_name(step); }

CheckpointFile write_shard(const SaveAttempt& attempt, int rank, int ranks,
                           const std::vector<std::string_view>& contents, uint64_t bytes) {
  make_folders(attempt.folder);
  // Its name and its entries are flushed by commit().
  if (::mkdir(attempt.temporary().c_str(), 0777) != 0 && errno != EEXIST)
    throw_with_free_space("make the folder", attempt.temporary(), errno);
  require_space(attempt.temporary(), bytes);
  return write_through(attempt.temporary(), contents, [&](int retry) { return shard_name(rank, ranks, retry); });
}

std::string commit(const SaveAttempt& attempt, const Manifest& manifest) {
  const std::string bytes = serialize_manifest(manifest), name = kManifestName;
  const CheckpointFile written = write_through(attempt.temporary(), {bytes}, [&](int retry) {
    return retry > 0 ? fmt::format("{}.retry{}", name, retry) : name;
  });
  if (written.name != name) rename_folder(attempt.temporary() + "/" + written.name, attempt.temporary() + "/" + name);
  sync_folder(attempt.temporary());

  const std::string aside = make_way(attempt);
  try {
    rename_folder(attempt.temporary(), attempt.committed());
    try {
      sync_folder(attempt.folder);
    } catch (const Error&) {
      // The name might be gone after a power failure. A checkpoint that is not reported as committed must not be found
      // either.
      rename_folder(attempt.committed(), attempt.temporary());
      throw;
    }
  } catch (const Error&) {
    if (!aside.empty()) rename_folder(aside, attempt.committed());
    throw;
  }
  const auto hidden = parse_hidden_name(name_of(aside));
  return hidden && hidden->purpose == Purpose::kReplaced ? aside : "";
}

void discard(const SaveAttempt& attempt) { remove_folder(attempt.temporary()); }

}  // namespace muster::checkpoints
