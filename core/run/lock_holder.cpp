#include "core/run/lock_holder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <utility>
#include <vector>

#include "base/error.h"

namespace muster::run {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kDigits = 32;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string this_host() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

// Processes of containers can only be asked for where their numbers mean the same.
std::string process_namespace() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/ns/pid", ignored).string();
}

// When the process began, in clock ticks since boot; 0: there is no such process, or it is a dead one nobody has waited
// for.
uint64_t start_of_process(int64_t process) {
  const std::string line = first_line("/proc/" + std::to_string(process) + "/stat");
  // The second field is a name in parentheses that may itself hold blanks and parentheses.
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream rest(line.substr(name_end + 1));
  const std::vector<std::string> fields{std::istream_iterator<std::string>(rest), {}};
  constexpr std::size_t kState = 3, kStart = 22;  // as proc(5) numbers them
  if (fields.size() <= kStart - kState || fields[0] == "Z" || fields[0] == "X") return 0;
  return std::strtoull(fields[kStart - kState].c_str(), nullptr, 10);
}

std::string command_line() {
  std::ifstream file("/proc/self/cmdline");
  std::string text(std::istreambuf_iterator<char>(file), {});
  while (!text.empty() && text.back() == '\0') text.pop_back();
  std::replace(text.begin(), text.end(), '\0', ' ');
  return text;
}

std::string random_id() {
  std::random_device random;
  char text[kDigits + 1];
  std::snprintf(text, sizeof text, "%08x%08x%08x%08x", random(), random(), random(), random());
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
                    std::pair{"host", &holder.host},
                    std::pair{"boot_id", &holder.boot_id},
                    std::pair{"job", &holder.job},
                    std::pair{"process_namespace", &holder.process_namespace},
                    std::pair{"command", &holder.command},
                    std::pair{"started", &holder.started}};
}

}  // namespace

std::string LockHolder::name() const {
  return job + " (host " + host + ", process " + std::to_string(process) + ", since " + started + ")";
}

std::string LockHolder::to_text() const {
  nlohmann::json content = {{"process", process},
                            {"process_start", process_start},
                            {"restarts", restarts},
                            {"renewed_every_seconds", std::chrono::duration<double>(interval).count()}};
  for (const auto& [name, text] : texts_of(*this)) content[name] = *text;
  return content.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

LockHolder this_process() {
  LockHolder holder;
  holder.id = random_id();
  holder.host = this_host();
  holder.boot_id = first_line("/proc/sys/kernel/random/boot_id");
  holder.process_namespace = process_namespace();
  holder.process = getpid();
  holder.process_start = start_of_process(getpid());
  holder.command = command_line().substr(0, 4096);
  holder.started = utc(std::time(nullptr));
  return holder;
}

std::optional<LockHolder> read_lock(const std::string& path) {
  const auto fail = [&](const std::string& what, int error_number) {
    throw Error(ExitCode::kIo, "Cannot lock the run directory: could not " + what + " " + path + ": " +
                                   std::strerror(error_number) + ".");
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
    content.at("process").get_to(holder.process);
    content.at("process_start").get_to(holder.process_start);
    content.at("restarts").get_to(holder.restarts);
    const double seconds = std::clamp(content.at("renewed_every_seconds").get<double>(), 0.001, 3600.0);
    holder.interval = milliseconds(std::lround(seconds * 1000));
    holder.renewed = status.st_mtim;
    if (holder.id.size() == kDigits && holder.id.find_first_not_of("0123456789abcdef") == std::string::npos)
      return holder;
  } catch (const nlohmann::json::exception&) {
  }
  throw Error(ExitCode::kUsage,
              path + " is not a lock that muster wrote. If no job uses this run directory, remove that file.");
}

std::optional<bool> is_running(const LockHolder& holder, const LockHolder& asks) {
  if (holder.host != asks.host || holder.boot_id != asks.boot_id || holder.process_namespace != asks.process_namespace)
    return std::nullopt;
  return start_of_process(holder.process) == holder.process_start;
}

}  // namespace muster::run
