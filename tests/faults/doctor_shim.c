// Breaks things for `muster doctor` to find: put in front of the C library and MPI by LD_PRELOAD.
//
//   MUSTER_BREAK   words, with a space between; rename@1: only in rank 1 of an mpirun (OMPI_COMM_WORLD_RANK)
//                      rename   a rename copies: readers find the file missing, or half of it
//                      fsync    fsync fails (EIO)
//                      slow     every fsync takes 0.15 s
//                      link     link() is refused (EPERM)
//                      lock     link() replaces what is there, so that everybody wins
//                      read     pread() gives other bytes than were written
//                      clock    the time of day is MUSTER_BREAK_SECONDS ahead
//                      sum      MPI_Allreduce gives a wrong sum
//                      delay    every MPI_Allreduce takes 30 ms
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int breaks(const char* what) {
  const char *words = getenv("MUSTER_BREAK"), *rank = getenv("OMPI_COMM_WORLD_RANK");
  const size_t length = strlen(what);
  for (const char* word = words; word && (word = strstr(word, what)); word += length) {
    const char* end = word + length;
    if (word != words && word[-1] != ' ') continue;
    if (*end == '\0' || *end == ' ' || (*end == '@' && rank && atoi(end + 1) == atoi(rank))) return 1;
  }
  return 0;
}

static void* next(const char* name) {
  void* found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

static int is_tried(const char* path) { return strstr(path, "/.muster-doctor-") != NULL; }

int rename(const char* from, const char* to) {
  if (!breaks("rename") || !is_tried(from) || !strstr(from, "replaced"))
    return ((int (*)(const char*, const char*))next("rename"))(from, to);
  static char content[1 << 20];
  const int source = open(from, O_RDONLY);
  const ssize_t length = read(source, content, sizeof content);
  close(source);
  unlink(to);
  usleep(500);
  const int target = open(to, O_WRONLY | O_CREAT, 0644);
  ssize_t wrote = write(target, content, length / 2);
  usleep(500);
  wrote += write(target, content + length / 2, length - length / 2);
  close(target);
  unlink(from);
  return wrote == length ? 0 : -1;
}

int fsync(int descriptor) {
  if (breaks("fsync")) {
    errno = EIO;
    return -1;
  }
  if (breaks("slow")) usleep(150000);
  return ((int (*)(int))next("fsync"))(descriptor);
}

int link(const char* from, const char* to) {
  if (breaks("link") && is_tried(from)) {
    errno = EPERM;
    return -1;
  }
  if (breaks("lock") && is_tried(from)) unlink(to);
  return ((int (*)(const char*, const char*))next("link"))(from, to);
}

ssize_t pread(int descriptor, void* buffer, size_t size, off_t offset) {
  const ssize_t got = ((ssize_t(*)(int, void*, size_t, off_t))next("pread"))(descriptor, buffer, size, offset);
  if (got > 0 && breaks("read")) ((char*)buffer)[got / 2] ^= 1;
  return got;
}

int clock_gettime(clockid_t clock, struct timespec* time) {
  const int status = (int)syscall(SYS_clock_gettime, clock, time);
  if (clock == CLOCK_REALTIME && breaks("clock")) time->tv_sec += atol(getenv("MUSTER_BREAK_SECONDS"));
  return status;
}

int MPI_Allreduce(const void* own, void* sum, int count, void* type, void* operation, void* ranks) {
  const int status = ((int (*)(const void*, void*, int, void*, void*, void*))next("MPI_Allreduce"))(
      own, sum, count, type, operation, ranks);
  if (breaks("sum")) ((float*)sum)[count / 2] += 1;
  if (breaks("delay")) usleep(30000);
  return status;
}
