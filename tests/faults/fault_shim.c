// Makes file operations fail, or kills the process at one of them: put in front of the C library by LD_PRELOAD.
//
//   MUSTER_FAULT_FOLDER   only operations on paths at or below this absolute path are counted
//   MUSTER_FAULT_AT       number of the operation, from 1, that the fault is at; none: only counts
//   MUSTER_FAULT_KIND     kill        the process dies (SIGKILL) before the operation
//                         kill_after  after it
//                         ENOSPC, EIO it is not done and fails
//                         short       of a write only half is written; other operations are left alone
//                         slow        every fsync takes MUSTER_FAULT_SECONDS longer (MUSTER_FAULT_AT does not matter)
//   MUSTER_FAULT_STICKY   1: ENOSPC, EIO and short stay from that operation on
//   MUSTER_FAULT_RANK     only in this rank of an mpirun (OMPI_COMM_WORLD_RANK)
//   MUSTER_FAULT_LOG      a file; one line per operation once it is over: number, rank, name, path below the folder
//   ("." itself), for renames and
//                         links " -> " and the new path, and at the end "ok", "failed" or "killed"
//
// Seen are calls from outside the C library: open for writing, write, fsync, rename ...; all of std::filesystem and
// std::ofstream; of stdio the calls themselves (fopen, fwrite, fflush, fclose), not what fprintf and fputs write. Not
// seen: mmap, sendfile, io_uring.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum Kind { NONE, KILL, KILL_AFTER, FAIL, SHORT, SLOW };

static char folder[PATH_MAX];
static size_t folder_length;
static long fault_at;
static enum Kind kind;
static int fault_errno, sticky, log_descriptor = -1;
static double slow_seconds;
static char rank[16];
static atomic_long operations;

static const char* variable(const char* name) {
  const char* value = getenv(name);
  return value ? value : "";
}

// Reads the settings and counts from 1 again. A forked child calls it after it has changed its environment.
__attribute__((visibility("default"))) void fault_shim_arm(void) {
  snprintf(folder, sizeof folder, "%s", variable("MUSTER_FAULT_FOLDER"));
  folder_length = strlen(folder);
  while (folder_length > 1 && folder[folder_length - 1] == '/') folder[--folder_length] = 0;
  snprintf(rank, sizeof rank, "%s", *variable("OMPI_COMM_WORLD_RANK") ? variable("OMPI_COMM_WORLD_RANK") : "0");
  fault_at = atol(variable("MUSTER_FAULT_AT"));
  sticky = atoi(variable("MUSTER_FAULT_STICKY"));
  slow_seconds = atof(variable("MUSTER_FAULT_SECONDS"));
  const char* name = variable("MUSTER_FAULT_KIND");
  fault_errno = !strcmp(name, "ENOSPC") ? ENOSPC : EIO;
  kind = !strcmp(name, "kill")                             ? KILL
         : !strcmp(name, "kill_after")                     ? KILL_AFTER
         : !strcmp(name, "short")                          ? SHORT
         : !strcmp(name, "slow")                           ? SLOW
         : !strcmp(name, "ENOSPC") || !strcmp(name, "EIO") ? FAIL
                                                           : NONE;
  if (*variable("MUSTER_FAULT_RANK") && strcmp(variable("MUSTER_FAULT_RANK"), rank)) kind = NONE;
  if (log_descriptor >= 0) syscall(SYS_close, log_descriptor);
  log_descriptor = -1;
  if (*variable("MUSTER_FAULT_LOG"))
    log_descriptor = (int)syscall(SYS_openat, AT_FDCWD, variable("MUSTER_FAULT_LOG"),
                                  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  atomic_store(&operations, 0);
}

__attribute__((visibility("default"))) long fault_shim_operations(void) { return atomic_load(&operations); }

__attribute__((constructor)) static void begin(void) { fault_shim_arm(); }

static void* next(const char* name) {
  void* found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

// The path below the folder, "." for itself; NULL if it is elsewhere.
static const char* below(const char* path) {
  if (!folder_length || strncmp(path, folder, folder_length)) return NULL;
  if (!path[folder_length]) return ".";
  return path[folder_length] == '/' ? path + folder_length + 1 : NULL;
}

static const char* of_descriptor(int descriptor, char* buffer) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = descriptor == log_descriptor || !folder_length ? -1 : readlink(link, buffer, PATH_MAX - 1);
  if (length < 0) return NULL;
  buffer[length] = 0;
  return below(buffer);
}

static const char* of_path(int directory, const char* path, char* buffer) {
  if (!folder_length || !path) return NULL;
  if (path[0] == '/') return below(path);
  char start[PATH_MAX];
  if (directory == AT_FDCWD) {
    if (!getcwd(start, sizeof start)) return NULL;
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    const ssize_t length = readlink(link, start, sizeof start - 1);
    if (length < 0) return NULL;
    start[length] = 0;
  }
  while (path[0] == '.' && path[1] == '/') path += 2;
  snprintf(buffer, PATH_MAX, "%.2000s/%.2000s", start, path);
  return below(buffer);
}

typedef struct {
  long number;  // 0: not one of ours
  int fails, halves, kills_after;
  const char *name, *from, *to;
} Operation;

static void log_operation(const Operation* operation, const char* end) {
  if (log_descriptor < 0) return;
  const int error_number = errno;
  char line[2 * PATH_MAX];
  const int length = snprintf(line, sizeof line, "%ld %s %s %s%s%s %s\n", operation->number, rank, operation->name,
                              operation->from, operation->to ? " -> " : "", operation->to ? operation->to : "", end);
  syscall(SYS_write, log_descriptor, line, length);
  errno = error_number;
}

static void die(const Operation* operation) {
  log_operation(operation, "killed");
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

static Operation enter(const char* name, const char* from, const char* to) {
  Operation operation = {0, 0, 0, 0, name, from, to};
  if (!from && !to) return operation;
  if (!from) operation.from = "(elsewhere)";
  operation.number = atomic_fetch_add(&operations, 1) + 1;
  const int here = kind != NONE && kind != SLOW && fault_at > 0 &&
                   (operation.number == fault_at || (sticky && operation.number > fault_at));
  if (here && kind == KILL) die(&operation);
  operation.kills_after = here && kind == KILL_AFTER;
  operation.fails = here && kind == FAIL;
  operation.halves = here && kind == SHORT;
  return operation;
}

static void leave(const Operation* operation, int ok) {
  if (!operation->number) return;
  if (operation->kills_after) die(operation);
  log_operation(operation, ok ? "ok" : "failed");
}

// The result of an operation whose failure is -1; `call` is not evaluated where the fault is.
#define DO(name, from, to, type, call)                                            \
  Operation operation = enter(name, from, to);                                    \
  const type result = operation.fails ? (errno = fault_errno, (type)-1) : (call); \
  leave(&operation, result != (type)-1);                                          \
  return result

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define MODE_ARGUMENT(flags)                                 \
  mode_t mode = 0;                                           \
  if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
    va_list arguments;                                       \
    va_start(arguments, flags);                              \
    mode = va_arg(arguments, mode_t);                        \
    va_end(arguments);                                       \
  }

static int open_at(int directory, const char* path, int flags, mode_t mode) {
  char buffer[PATH_MAX];
  DO("open", writes(flags) ? of_path(directory, path, buffer) : NULL, NULL, int,
     (int)syscall(SYS_openat, directory, path, flags, mode));
}

int open(const char* path, int flags, ...) {
  MODE_ARGUMENT(flags)
  return open_at(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  MODE_ARGUMENT(flags)
  return open_at(AT_FDCWD, path, flags, mode);
}
int openat(int directory, const char* path, int flags, ...) {
  MODE_ARGUMENT(flags)
  return open_at(directory, path, flags, mode);
}
int openat64(int directory, const char* path, int flags, ...) {
  MODE_ARGUMENT(flags)
  return open_at(directory, path, flags, mode);
}
int creat(const char* path, mode_t mode) { return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char* path, mode_t mode) { return creat(path, mode); }

ssize_t write(int descriptor, const void* bytes, size_t count) {
  char buffer[PATH_MAX];
  DO("write", of_descriptor(descriptor, buffer), NULL, ssize_t,
     syscall(SYS_write, descriptor, bytes, operation.halves ? (count + 1) / 2 : count));
}
ssize_t pwrite(int descriptor, const void* bytes, size_t count, off_t offset) {
  char buffer[PATH_MAX];
  DO("pwrite", of_descriptor(descriptor, buffer), NULL, ssize_t,
     syscall(SYS_pwrite64, descriptor, bytes, operation.halves ? (count + 1) / 2 : count, offset));
}
ssize_t pwrite64(int descriptor, const void* bytes, size_t count, off_t offset) {
  return pwrite(descriptor, bytes, count, offset);
}

static size_t half_of(const struct iovec* parts, int count) {
  size_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += parts[i].iov_len;
  return (bytes + 1) / 2;
}
// Half of all bytes, as far as they are in the first part.
static struct iovec first_half(const struct iovec* parts, int count) {
  struct iovec part = parts[0];
  const size_t half = half_of(parts, count);
  if (part.iov_len > half) part.iov_len = half;
  return part;
}
ssize_t writev(int descriptor, const struct iovec* parts, int count) {
  char buffer[PATH_MAX];
  struct iovec half;
  DO("writev", of_descriptor(descriptor, buffer), NULL, ssize_t,
     operation.halves && count > 0 ? (half = first_half(parts, count), syscall(SYS_writev, descriptor, &half, 1))
                                   : syscall(SYS_writev, descriptor, parts, count));
}

static void slow_down(const Operation* operation) {
  if (!operation->number || kind != SLOW) return;
  struct timespec time = {(time_t)slow_seconds, (long)((slow_seconds - (double)(time_t)slow_seconds) * 1e9)};
  while (nanosleep(&time, &time) != 0) {
  }
}
int fsync(int descriptor) {
  char buffer[PATH_MAX];
  DO("fsync", of_descriptor(descriptor, buffer), NULL, int,
     (slow_down(&operation), (int)syscall(SYS_fsync, descriptor)));
}
int fdatasync(int descriptor) {
  char buffer[PATH_MAX];
  DO("fdatasync", of_descriptor(descriptor, buffer), NULL, int,
     (slow_down(&operation), (int)syscall(SYS_fdatasync, descriptor)));
}

#define TWO_PATHS(name, from_directory, from, to_directory, to, call)  \
  char from_buffer[PATH_MAX], to_buffer[PATH_MAX];                     \
  const char* from_below = of_path(from_directory, from, from_buffer); \
  const char* to_below = of_path(to_directory, to, to_buffer);         \
  DO(name, from_below, from_below || to_below ? (to_below ? to_below : "(elsewhere)") : NULL, int, (int)(call))

int rename(const char* from, const char* to) {
  TWO_PATHS("rename", AT_FDCWD, from, AT_FDCWD, to, syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int renameat(int from_directory, const char* from, int to_directory, const char* to) {
  TWO_PATHS("rename", from_directory, from, to_directory, to,
            syscall(SYS_renameat2, from_directory, from, to_directory, to, 0));
}
int renameat2(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) {
  TWO_PATHS("rename", from_directory, from, to_directory, to,
            syscall(SYS_renameat2, from_directory, from, to_directory, to, flags));
}
int link(const char* from, const char* to) {
  TWO_PATHS("link", AT_FDCWD, from, AT_FDCWD, to, syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int linkat(int from_directory, const char* from, int to_directory, const char* to, int flags) {
  TWO_PATHS("link", from_directory, from, to_directory, to,
            syscall(SYS_linkat, from_directory, from, to_directory, to, flags));
}
int symlink(const char* target, const char* path) {
  char buffer[PATH_MAX];
  DO("symlink", of_path(AT_FDCWD, path, buffer), NULL, int, (int)syscall(SYS_symlinkat, target, AT_FDCWD, path));
}

static int unlink_at(const char* name, int directory, const char* path, int flags) {
  char buffer[PATH_MAX];
  DO(name, of_path(directory, path, buffer), NULL, int, (int)syscall(SYS_unlinkat, directory, path, flags));
}
int unlinkat(int directory, const char* path, int flags) {
  return unlink_at(flags & AT_REMOVEDIR ? "rmdir" : "unlink", directory, path, flags);
}
int unlink(const char* path) { return unlink_at("unlink", AT_FDCWD, path, 0); }
int rmdir(const char* path) { return unlink_at("rmdir", AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char* path) {
  struct stat status;
  if (lstat(path, &status) != 0) return -1;
  return S_ISDIR(status.st_mode) ? rmdir(path) : unlink(path);
}
int mkdirat(int directory, const char* path, mode_t mode) {
  char buffer[PATH_MAX];
  DO("mkdir", of_path(directory, path, buffer), NULL, int, (int)syscall(SYS_mkdirat, directory, path, mode));
}
int mkdir(const char* path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int ftruncate(int descriptor, off_t size) {
  char buffer[PATH_MAX];
  DO("truncate", of_descriptor(descriptor, buffer), NULL, int, (int)syscall(SYS_ftruncate, descriptor, size));
}
int ftruncate64(int descriptor, off_t size) { return ftruncate(descriptor, size); }
int truncate(const char* path, off_t size) {
  char buffer[PATH_MAX];
  DO("truncate", of_path(AT_FDCWD, path, buffer), NULL, int, (int)syscall(SYS_truncate, path, size));
}
int truncate64(const char* path, off_t size) { return truncate(path, size); }
int fallocate(int descriptor, int mode, off_t offset, off_t size) {
  char buffer[PATH_MAX];
  DO("fallocate", of_descriptor(descriptor, buffer), NULL, int,
     (int)syscall(SYS_fallocate, descriptor, mode, offset, size));
}
int fallocate64(int descriptor, int mode, off_t offset, off_t size) {
  return fallocate(descriptor, mode, offset, size);
}
// Returns the error instead of setting it.
int posix_fallocate(int descriptor, off_t offset, off_t size) {
  return fallocate(descriptor, 0, offset, size) == 0 ? 0 : errno;
}
int posix_fallocate64(int descriptor, off_t offset, off_t size) { return posix_fallocate(descriptor, offset, size); }

// A descriptor is closed even when closing it fails.
int close(int descriptor) {
  char buffer[PATH_MAX];
  const int flags = folder_length ? fcntl(descriptor, F_GETFL) : -1;
  Operation operation = enter("close", flags >= 0 && writes(flags) ? of_descriptor(descriptor, buffer) : NULL, NULL);
  int result = (int)syscall(SYS_close, descriptor);
  if (operation.fails && result == 0) {
    errno = fault_errno;
    result = -1;
  }
  leave(&operation, result == 0);
  return result;
}

static const char* of_stream(FILE* stream, char* buffer) {
  return stream && stream != stdout && stream != stderr && stream != stdin && folder_length
             ? of_descriptor(fileno(stream), buffer)
             : NULL;
}
static FILE* open_stream(const char* real, const char* path, const char* mode) {
  static FILE* (*opens[2])(const char*, const char*);
  const int which = real[5] != 0;  // fopen, fopen64
  if (!opens[which]) opens[which] = (FILE * (*)(const char*, const char*)) next(real);
  char buffer[PATH_MAX];
  Operation operation = enter("fopen", strpbrk(mode, "wa+") ? of_path(AT_FDCWD, path, buffer) : NULL, NULL);
  FILE* result = operation.fails ? (errno = fault_errno, NULL) : opens[which](path, mode);
  leave(&operation, result != NULL);
  return result;
}
FILE* fopen(const char* path, const char* mode) { return open_stream("fopen", path, mode); }
FILE* fopen64(const char* path, const char* mode) { return open_stream("fopen64", path, mode); }

size_t fwrite(const void* bytes, size_t size, size_t count, FILE* stream) {
  static size_t (*real)(const void*, size_t, size_t, FILE*);
  if (!real) real = (size_t(*)(const void*, size_t, size_t, FILE*))next("fwrite");
  char buffer[PATH_MAX];
  Operation operation = enter("fwrite", of_stream(stream, buffer), NULL);
  const size_t result = operation.fails ? (errno = fault_errno, 0)
                                        : real(bytes, size, operation.halves ? (count + 1) / 2 : count, stream);
  leave(&operation, result == count);
  return result;
}
int fflush(FILE* stream) {
  static int (*real)(FILE*);
  if (!real) real = (int (*)(FILE*))next("fflush");
  char buffer[PATH_MAX];
  DO("fflush", of_stream(stream, buffer), NULL, int, real(stream));
}
int fclose(FILE* stream) {
  static int (*real)(FILE*);
  if (!real) real = (int (*)(FILE*))next("fclose");
  char buffer[PATH_MAX];
  const int flags = stream && folder_length ? fcntl(fileno(stream), F_GETFL) : -1;
  Operation operation = enter("fclose", flags >= 0 && writes(flags) ? of_stream(stream, buffer) : NULL, NULL);
  int result = real(stream);
  if (operation.fails && result == 0) {
    errno = fault_errno;
    result = -1;
  }
  leave(&operation, result == 0);
  return result;
}
