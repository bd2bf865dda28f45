#include "base/host.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <sstream>
#include <vector>

#include "base/files.h"

namespace muster {
namespace {

uint64_t start_of(int64_t process) {
  const auto status = process_status(process);
  return status && status->state != 'Z' && status->state != 'X' ? status->start : 0;
}

}  // namespace

std::string host_name() {
  char name[256] = "";
  return ::gethostname(name, sizeof name - 1) == 0 && name[0] ? name : "unknown";
}

HostIdentity this_process() {
  std::error_code ignored;
  return {host_name(), first_line_of("/proc/sys/kernel/random/boot_id"),
          std::filesystem::read_symlink("/proc/self/ns/pid", ignored).string(), ::getpid(), start_of(::getpid())};
}

bool same_process_namespace(const HostIdentity& a, const HostIdentity& b) {
  return a.host == b.host && a.boot_id == b.boot_id && a.process_namespace == b.process_namespace;
}

std::optional<bool> is_running(const HostIdentity& process) {
  if (!same_process_namespace(process, this_process())) return std::nullopt;
  return start_of(process.process) == process.process_start;
}

std::optional<ProcessStatus> process_status(int64_t process) {
  const std::string line = first_line_of(fmt::format("/proc/{}/stat", process));
  // The second field is a name in parentheses that may itself hold blanks and parentheses.
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream rest(line.substr(name_end + 1));
  const std::vector<std::string> fields{std::istream_iterator<std::string>(rest), {}};
  constexpr std::size_t kState = 3, kParent = 4, kStart = 22;  // as proc(5) numbers them
  if (fields.size() <= kStart - kState) return std::nullopt;
  return ProcessStatus{fields[0][0], std::atoll(fields[kParent - kState].c_str()),
                       std::strtoull(fields[kStart - kState].c_str(), nullptr, 10)};
}

}  // namespace muster
