// Works on files in every way that the shim watches, in one order, and says what failed: "name: message" per line;
// nothing when all went well.
//   shim_probe FOLDER
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace fs = std::filesystem;

static void tell(const char* what, bool ok) {
  const int error = errno;
  if (ok) return;
  const std::string line = std::string(what) + ": " + std::strerror(error) + "\n";
  if (::write(STDOUT_FILENO, line.data(), line.size()) < 0) _exit(1);
}

int main(int, char** argv) {
  if (::chdir(argv[1]) != 0) return 1;
  char bytes[100] = "0123456789";
  tell("mkdir", ::mkdir("folder", 0777) == 0);
  const int file = ::open("folder/file", O_WRONLY | O_CREAT, 0666);
  tell("open", file >= 0);
  tell("write", ::write(file, bytes, 100) == 100);
  tell("pwrite", ::pwrite(file, bytes, 100, 100) == 100);
  iovec parts[2] = {{bytes, 60}, {bytes, 40}};
  tell("writev", ::writev(file, parts, 2) == 100);
  tell("fsync", ::fsync(file) == 0);
  tell("fdatasync", ::fdatasync(file) == 0);
  tell("ftruncate", ::ftruncate(file, 150) == 0);
  tell("close", ::close(file) == 0);
  const int directory = ::open("folder", O_RDONLY | O_DIRECTORY);
  tell("fsync of a folder", ::fsync(directory) == 0);
  ::close(directory);
  tell("link", ::link("folder/file", "folder/other") == 0);
  tell("rename", std::rename("folder/file", "folder/renamed") == 0);
  std::error_code error;
  fs::rename("folder/renamed", "folder/again", error);
  errno = error.value();
  tell("std::filesystem::rename", !error);
  {
    std::ofstream stream("folder/stream");
    stream << "text" << std::flush;
    tell("std::ofstream", static_cast<bool>(stream));
  }
  std::FILE* c_stream = std::fopen("folder/stdio", "w");
  tell("fopen", c_stream != nullptr);
  if (c_stream) {
    tell("fwrite", std::fwrite(bytes, 1, 100, c_stream) == 100);
    tell("fflush", std::fflush(c_stream) == 0);
    tell("fclose", std::fclose(c_stream) == 0);
  }
  tell("remove", std::remove("folder/stdio") == 0);
  tell("unlink", ::unlink("folder/other") == 0);
  fs::remove_all("folder", error);
  errno = error.value();
  tell("std::filesystem::remove_all", !error);
  std::ifstream("/proc/self/stat").get();  // elsewhere, and only reading: not counted
  return 0;
}
