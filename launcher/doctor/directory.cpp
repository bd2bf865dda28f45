#include <algorithm>
#include <sstream>

#include "launcher/doctor/files.h"
#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {
namespace {

// Spaces and the like are written as octal numbers.
std::string unescaped(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      result += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      result += text[i];
    }
  }
  return result;
}

bool is_below(const std::string& path, const std::string& folder) {
  return folder == "/" || path == folder || path.rfind(folder + "/", 0) == 0;
}

bool has_option(const Mount& mount, const std::string& option) {
  return ("," + mount.options + ",").find("," + option + ",") != std::string::npos;
}

}  // namespace

Mount mount_of(const std::string& path, const std::string& mounts) {
  Mount best;
  std::istringstream lines(mounts);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    Mount mount;
    words >> mount.source >> mount.point >> mount.type >> mount.options;
    mount.point = unescaped(mount.point);
    // Of two on one place the later one is seen.
    if (is_below(path, mount.point) && mount.point.size() >= best.point.size()) best = mount;
  }
  return best;
}

std::vector<Finding> check_directory(const std::string& path, const Mount& mount, bool several_hosts) {
  static const std::vector<std::string> network{"nfs",  "nfs4",  "lustre", "gpfs", "beegfs",   "ceph",   "cifs",
                                                "smb3", "panfs", "afs",    "9p",   "virtiofs", "wekafs", "pvfs2"};
  const bool is_network = std::count(network.begin(), network.end(), mount.type) > 0;
  const bool is_fuse = mount.type.rfind("fuse", 0) == 0;
  Finding kind{"directory", State::kOk, path + " on " + (mount.type.empty() ? "an unknown file system" : mount.type),
               "",          "",         "",
               -1,          {}};
  kind.expected = "a file system that outlives the job, and that all machines of it share";
  kind.figures = {{"path", path},
                  {"type", mount.type},
                  {"source", mount.source},
                  {"mounted_at", mount.point},
                  {"options", mount.options}};
  if (mount.type == "tmpfs" || mount.type == "ramfs") {
    kind.state = State::kWarning;
    kind.found += ": in memory, lost when the machine restarts or, under some schedulers, when the job ends";
    kind.fix = "keep run directories on a disk (--directory tries another place)";
  } else if (mount.type == "overlay" || mount.type == "aufs") {
    kind.state = State::kWarning;
    kind.found += ": a container's own layer, which goes with the container";
    kind.fix = "keep run directories in a folder of the machine: docker run -v /data:/data, apptainer --bind";
  } else if (mount.type.rfind("nfs", 0) == 0 && has_option(mount, "soft")) {
    kind.state = State::kWarning;
    kind.found += ", mounted soft: a server that is slow for a moment becomes an I/O error";
    kind.fix = "ask the administrator to mount it hard (the default)";
  } else if (mount.type == "cifs" || mount.type == "smb3" || mount.type == "9p" || is_fuse) {
    kind.state = State::kWarning;
    kind.found += ": see below whether rename and link do what a run needs";
    kind.fix = "keep run directories on a POSIX file system: a disk, NFS, Lustre, GPFS";
  } else if (several_hosts && !is_network && !mount.type.empty()) {
    kind.found += " (a disk of this machine; \"shared\" below says whether the others see it)";
  }

  const Room room = room_of(path);
  Finding space{"free_space",
                State::kOk,
                size_text(static_cast<double>(room.free_bytes)) + " free",
                "at least 1 GB and 10000 files",
                "",
                "",
                -1,
                {}};
  space.figures = {{"size_bytes", room.bytes},
                   {"free_bytes", room.free_bytes},
                   {"inodes", room.inodes},
                   {"free_inodes", room.free_inodes}};
  if (room.inodes > 0) space.found += ", room for " + std::to_string(room.free_inodes) + " files";
  const bool counts = room.inodes > 0;  // btrfs, Lustre clients and others may not
  if (room.free_bytes < 1000000000 || (counts && room.free_inodes < 10000)) space.state = State::kWarning;
  if (room.free_bytes < 50000000 || (counts && room.free_inodes < 100)) space.state = State::kFailed;
  if (space.state != State::kOk)
    space.fix = "make room (muster checkpoints prune removes old checkpoints), or name another place: --directory DIR";
  return {kind, space};
}

}  // namespace muster::launcher::doctor
