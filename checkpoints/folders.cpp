#include "checkpoints/folders.h"

#include <dirent.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "base/atomic_file.h"
#include "base/error.h"

namespace muster::checkpoints {


namespace {

constexpr std::pair<Purpose, const char*> kPrefixes[] = {{Purpose::kWriting, ".tmp-"},
                                                         {Purpose::kRemoving, ".del-step-"},
                                                         {Purpose::kReplaced, ".old-step-"},
                                                         {Purpose::kDamaged, ".bad-step-"}};

std::string digits_of(uint64_t step) {
  char text[24];
  std::snprintf(text, sizeof text, "%08lu", static_cast<unsigned long>(step));
  return text;
}

std::optional<uint64_t> step_of_digits(const std::string& digits) {
  if (digits.size() < 8 || digits.size() > 20 ||
      !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }))
    return std::nullopt;
  uint64_t step = 0;
  for (const char digit : digits) {
    if (__builtin_mul_overflow(step, 10, &step) || __builtin_add_overflow(step, digit - '0', &step))
      return std::nullopt;
  }
  if (digits_of(step) != digits) return std::nullopt;
  return step;
}

}  // namespace

std::string step_name(uint64_t step) { return "step-" + digits_of(step); }

std::optional<uint64_t> step_of_name(const std::string& name) {
  return name.compare(0, 5, "step-") == 0 ? step_of_digits(name.substr(5)) : std::nullopt;
}

std::string hidden_name(Purpose purpose, uint64_t step, const std::string& uuid) {
  for (const auto& [known, prefix] : kPrefixes)
    if (known == purpose) return prefix + digits_of(step) + "-" + uuid;
  throw std::logic_error("no such purpose");
}

std::optional<HiddenName> parse_hidden_name(const std::string& name) {
  for (const auto& [purpose, text] : kPrefixes) {
    const std::string prefix = text;
    const std::size_t dash = name.rfind('-');
    if (name.compare(0, prefix.size(), prefix) != 0 || dash < prefix.size() || name.size() - dash != 33) continue;
    if (name.find_first_not_of("0123456789abcdef", dash + 1) != name.npos) continue;
    if (const auto step = step_of_digits(name.substr(prefix.size(), dash - prefix.size())))
      return HiddenName{purpose, *step};
  }
  return std::nullopt;
}

std::string make_uuid() {
  unsigned char bytes[16];
  if (::getrandom(bytes, sizeof bytes, 0) != sizeof bytes) throw std::runtime_error("the system gives no random bytes");
  std::string text;
  for (const unsigned char byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

void require_step(const std::string& path, uint64_t step) {
  std::string name = path;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  const auto named = step_of_name(name.substr(name.rfind('/') + 1));
  if (!named || *named == step) return;
  throw Error(ExitCode::kBadData, path + " holds the checkpoint of step " + std::to_string(step) +
                                      ": it was renamed. Give it its name " + step_name(step) + ".");
}

std::vector<std::string> list_folder(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(folder.c_str()), ::closedir);
  if (!open) {
    if (errno == ENOENT) return {};
    throw_io_error("list", folder, errno);
  }
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(open.get());
    if (!entry && errno != 0) throw_io_error("list", folder, errno);
    if (!entry) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void make_folders(const std::string& folder) {
  if (::mkdir(folder.c_str(), 0777) == 0) return sync_folder(parent_of(folder));
  int error = errno;
  if (error == ENOENT && parent_of(folder) != folder) {
    make_folders(parent_of(folder));
    if (::mkdir(folder.c_str(), 0777) == 0) return sync_folder(parent_of(folder));
    error = errno;
  }
  struct stat status;
  if (error == EEXIST && ::stat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) return;
  throw_io_error("make the folder", folder, error);
}

void rename_folder(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_io_error("rename " + from + " to", to, errno);
}

void remove_folder(const std::string& folder) {
  for (const std::string& name : list_folder(folder)) {
    const std::string file = folder + "/" + name;
    if (::unlink(file.c_str()) != 0 && errno != ENOENT) throw_io_error("remove", file, errno);
  }
  if (::rmdir(folder.c_str()) != 0 && errno != ENOENT) throw_io_error("remove", folder, errno);
}

std::string parent_of(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  const std::size_t slash = end == path.npos ? 0 : path.rfind('/', end);
  if (slash == path.npos) return ".";
  const std::size_t last = path.find_last_not_of('/', slash);
  return last == path.npos ? "/" : path.substr(0, last + 1);
}

}  // namespace muster::checkpoints
