#include "core/run/lock_holder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/files.h"

namespace muster::run {
namespace {

using std::chrono::milliseconds;

constexpr size_t kDigits = 32;

std::string command_line() {
  std::string text = read_file_if_there("/proc/self/cmdline", 16 << 20).value_or("");
  while (!text.empty() && text.back() == '\0') text.pop_back();
  std::replace(text.begin(), text.end(), '\0', ' ');
  return text;
}

std::string utc(time_t seconds) {
  char text[32] = "";
  struct tm fields;
  if (gmtime_r(&seconds, &fields)) std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &fields);
  return text;
}

// The texts of a lock file and where they go.
template <typename Holder>
auto texts_of(Holder& holder) {
  return std::array{std::pair{"id", &holder.id},
                    std::pair{"host", &holder.where.host},
                    std::pair{"boot_id", &holder.where.boot_id},
                    std::pair{"job", &holder.job},
                    std::pair{"process_namespace", &holder.where.process_namespace},
                    std::pair{"command", &holder.command},
                    std::pair{"started", &holder.started}};
}

}  // namespace

std::string LockHolder::name() const {
  return fmt::format("{} (host {}, process {}, since {})", job, where.host, where.process, started);
}

std::string LockHolder::to_text() const {
  nlohmann::json content = {{"process", where.process},
                            {"process_start", where.process_start},
                            {"restarts", restarts},
                            {"renewed_every_seconds", std::chrono::duration<double>(interval).count()}};
  for (const auto& [name, text] : texts_of(*this)) content[name] = *text;
  return content.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

LockHolder new_holder() {
  LockHolder holder;
  holder.id = make_uuid();
  holder.where = this_process();
  holder.command = command_line().substr(0, 4096);
  holder.started = utc(std::time(nullptr));
  return holder;
}

std::optional<LockHolder> read_lock(const std::string& path) {
  const auto fail = [&](const std::string& what, int error_number) {
    throw Error(ExitCode::kIo, fmt::format("Cannot lock the run directory: could not {} {}: {}.", what, path,
                                           std::strerror(error_number)));
  };
  int descriptor = -1;
  for (int attempt = 0; attempt < 5 && descriptor < 0; ++attempt) {  // ESTALE: replaced between look-up and opening
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (descriptor < 0 && errno != ESTALE && errno != EINTR) break;
  }
  if (descriptor < 0 && (errno == ENOENT || errno == ESTALE)) return std::nullopt;
  if (descriptor < 0) fail("open", errno);
  char text[16384];
  struct stat status;
  const ssize_t size = ::fstat(descriptor, &status) == 0 ? ::read(descriptor, text, sizeof text) : -1;
  const int error_number = errno;
  ::close(descriptor);
  if (size < 0 && error_number == ESTALE) return std::nullopt;
  if (size < 0) fail("read", error_number);
  try {
    const auto content = nlohmann::json::parse(text, text + size);
    LockHolder holder;
    for (const auto& [name, field] : texts_of(holder)) content.at(name).get_to(*field);
    content.at("process").get_to(holder.where.process);
    content.at("process_start").get_to(holder.where.process_start);
    content.at("restarts").get_to(holder.restarts);
    const double seconds = std::clamp(content.at("renewed_every_seconds").get<double>(), 0.001, 3600.0);
    holder.interval = milliseconds(std::lround(seconds * 1000));
    holder.renewed = status.st_mtim;
    if (holder.id.size() == kDigits && holder.id.find_first_not_of("0123456789abcdef") == std::string::npos)
      return holder;
  } catch (const nlohmann::json::exception&) {
  }
  throw Error(
      ExitCode::kUsage,
      fmt::format("{} is not a lock that muster wrote. If no job uses this run directory, remove that file.", path));
}

}  // namespace muster::run
