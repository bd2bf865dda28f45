#include "launcher/doctor/libraries.h"

#include <ATen/Version.h>
#include <H5public.h>
#include <gnu/libc-version.h>
#include <google/protobuf/stubs/common.h>
#include <torch/version.h>

#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "distributed/communicator.h"
#include "distributed/nccl.h"

namespace muster::launcher::doctor {
namespace {

// What must be there once, and why. A file belongs to a family by its name, whatever hash or version a packager has put
// into it.
struct Family {
  const char* name;
  const char* pattern;
  State state;  // when there are two
  const char* why;
};
const Family kFamilies[] = {
    {"MPI", R"(libmpi(-[0-9a-f]+)?\.so.*)", State::kFailed, "each would start a job of its own"},
    {"NCCL", R"(libnccl(-[0-9a-f]+)?\.so.*)", State::kFailed, "each keeps its own communicators"},
    {"protobuf", R"(libprotobuf(-[0-9a-f]+)?\.so.*)", State::kFailed, "messages of one crash in the other"},
    {"CUDA runtime", R"(libcudart(-[0-9a-f]+)?\.so.*)", State::kFailed, "each keeps its own streams"},
    {"HDF5", R"(libhdf5(_serial|_openmpi|_mpich)?(-[0-9a-f]+)?\.so.*)", State::kFailed,
     "files opened by one are unknown to the other"},
    {"C++ runtime", R"(libstdc\+\+(-[0-9a-f]+)?\.so.*)", State::kFailed,
     "exceptions thrown through one are not caught in the other"},
    {"LibTorch", R"(libtorch_cpu\.so.*)", State::kFailed, "tensors of one are unknown to the other"},
    {"hwloc", R"(libhwloc(-[0-9a-f]+)?\.so.*)", State::kWarning, "MPI and the scheduler may disagree about cores"},
    {"PMIx", R"(libpmix(-[0-9a-f]+)?\.so.*)", State::kWarning, "MPI and the scheduler may not understand each other"},
    {"OpenMP", R"(lib(gomp|iomp5|omp)(-[0-9a-f]+)?\.so.*)", State::kWarning,
     "each starts its own threads, on the same cores"},
};

struct Loaded {
  std::string identity, path, name;  // identity: device and inode
};

// Files with code in this process; a deleted or replaced file is one more.
std::vector<Loaded> loaded_files(const std::string& maps) {
  std::vector<Loaded> files;
  std::set<std::string> seen;
  std::istringstream lines(maps);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string range, access, offset, device, inode, path;
    words >> range >> access >> offset >> device >> inode;
    std::getline(words >> std::ws, path);
    if (path.empty() || path[0] != '/' || path.find(".so") == std::string::npos ||
        !seen.insert(device + " " + inode).second)
      continue;
    files.push_back({device + " " + inode, path, path.substr(path.rfind('/') + 1)});
  }
  return files;
}

std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

Finding check_duplicates(const std::vector<Loaded>& files) {
  Finding finding{"duplicates", State::kOk, "none", "", "", "", -1, {}};
  for (const auto& family : kFamilies)
    finding.expected += (finding.expected.empty() ? "one file of each of " : ", ") + std::string(family.name);
  for (const auto& family : kFamilies) {
    std::string list;
    int count = 0;
    for (const auto& file : files)
      if (std::regex_match(file.name, std::regex(family.pattern))) list += (count++ ? " and " : "") + file.path;
    if (count > 0) finding.figures[family.name] = count;
    if (count < 2) continue;
    const std::string text = std::string(count == 2 ? "two " : std::to_string(count) + " ") + family.name +
                             " libraries: " + list + " (" + family.why + ")";
    finding.found = finding.state == State::kOk ? text : finding.found + "; " + text;
    finding.state = std::max(finding.state, family.state);
    finding.fix =
        "see which of LD_PRELOAD, LD_LIBRARY_PATH and loaded modules brings the second one in (LD_DEBUG=libs muster "
        "--version shows "
        "who loads what), and remove it";
  }
  return finding;
}

Finding check_preload(const Machine& machine) {
  Finding finding{"preload", State::kOk, "LD_PRELOAD is not set", "", "", "", -1, {}};
  const std::string preloaded = variable(machine, "LD_PRELOAD");
  if (preloaded.empty()) return finding;
  finding.found = "LD_PRELOAD=" + preloaded;
  finding.expected = "at most a memory allocator";
  static const std::regex allocators(R"(lib(tcmalloc|jemalloc|mimalloc)[^/]*)");
  std::istringstream words(std::regex_replace(preloaded, std::regex(":"), " "));
  for (std::string word; words >> word;)
    if (!std::regex_match(word.substr(word.rfind('/') + 1), allocators)) finding.state = State::kWarning;
  if (finding.state == State::kWarning)
    finding.fix = "unset LD_PRELOAD: what it names replaces functions of every program, mpirun and ssh included";
  return finding;
}

// Modules of a cluster set LD_LIBRARY_PATH, as a rule for MPI; what the build has fixed paths for must not come from
// there.
Finding check_library_path(const Machine& machine, const std::vector<Loaded>& files) {
  Finding finding{"library_path", State::kOk, "LD_LIBRARY_PATH is not set", "", "", "", -1, {}};
  const std::string folders = variable(machine, "LD_LIBRARY_PATH");
  if (folders.empty()) return finding;
  finding.found = "LD_LIBRARY_PATH replaces nothing that matters";
  finding.expected =
      "LibTorch, CUDA, NCCL, protobuf, HDF5 and the C++ runtime come from where muster was built with them";
  static const std::regex fixed(R"(lib(torch|c10|cudart|nccl|protobuf|hdf5|stdc\+\+|gomp)[^/]*)");
  std::string list;
  std::istringstream parts(folders);
  for (std::string folder; std::getline(parts, folder, ':');) {
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    for (const auto& file : files)
      if (!folder.empty() && folder_of(file.path) == folder && std::regex_match(file.name, fixed))
        list += (list.empty() ? "" : ", ") + file.path;
  }
  if (list.empty()) return finding;
  finding.state = State::kWarning;
  finding.found = "LD_LIBRARY_PATH puts these in place of others: " + list;
  finding.fix =
      "take these folders out of LD_LIBRARY_PATH (or unload the modules that add them), or rebuild muster with them";
  return finding;
}

// "Open MPI v4.1.4, package: ..." -> {"Open MPI", "4.1"}
std::pair<std::string, std::string> series(const std::string& version) {
  std::smatch found;
  if (!std::regex_search(version, found, std::regex(R"(^\s*([A-Za-z ]+?)\s*(?:Version:?)?\s*v?(\d+\.\d+))")))
    return {version, ""};
  return {found[1], found[2]};
}

Finding check_build(const std::vector<Version>& versions) {
  Finding finding{"built_with", State::kOk, "", "the libraries at run time are those that muster was built with",
                  "",           "",         -1, {}};
  std::string alike, different;
  for (const auto& each : versions) {
    if (each.built_with.empty()) continue;
    const auto built = series(each.built_with), loaded = series(each.loaded);
    if (built == loaded) {
      alike += (alike.empty() ? "" : ", ") + each.library;
      continue;
    }
    different += (different.empty() ? "" : "; ") + each.library + ": built with " + each.built_with +
                 ", but this process has " + each.loaded;
    // Minor versions of one MPI understand each other; two makes of MPI do not.
    finding.state = std::max(finding.state, built.first == loaded.first ? State::kWarning : State::kFailed);
  }
  finding.found = different.empty() ? "the same " + alike + " as at run time" : different;
  if (!different.empty())
    finding.fix =
        "load the modules (or activate the environment) that muster was built under, or build it again (./setup.sh)";
  return finding;
}

}  // namespace

std::vector<Version> versions_here() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  const std::string hdf5 = std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
  const std::string hdf5_headers =
      std::to_string(H5_VERS_MAJOR) + "." + std::to_string(H5_VERS_MINOR) + "." + std::to_string(H5_VERS_RELEASE);
  std::vector<Version> versions{{"muster", "", MUSTER_VERSION},
                                {"torch", "", TORCH_VERSION},
                                {"MPI", distributed::mpi_headers_version(), distributed::mpi_library_version()},
                                {"HDF5", hdf5_headers, hdf5},
                                {"protobuf", "", google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION)},
                                {"glibc", "", gnu_get_libc_version()}};
  if (const auto nccl = distributed::nccl_version(); !nccl.empty()) versions.push_back({"NCCL", "", nccl});
  return versions;
}

std::vector<Finding> check_libraries(const Machine& machine, const std::vector<Version>& versions) {
  const auto files = loaded_files(machine.maps);
  Finding list{"versions", State::kOk, "", "", "", "", -1, {}};
  for (const auto& each : versions) {
    list.found += (list.found.empty() ? "" : ", ") + each.library + " " + each.loaded;
    list.figures[each.library] = each.loaded;
  }
  std::vector<Finding> findings{list, check_build(versions), check_duplicates(files), check_preload(machine),
                                check_library_path(machine, files)};
  for (auto& finding : findings) finding.host = machine.host;
  return findings;
}

}  // namespace muster::launcher::doctor
