#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/huge_pages.h"
#include "base/print.h"
#include "base/process.h"
#include "base/text.h"
#include "core/run/run_lock.h"
#include "distributed/communicator.h"
#include "launcher/commands/commands.h"
#include "launcher/slurm/this_job.h"

namespace {

using muster::Error;
using muster::ExitCode;

constexpr size_t kMostLines = 200;  // of a message

// One message per job: an error that all ranks share is printed by the first. A command that runs on one process always
// prints its own: schedulers leave variables that number ranks in shells too. The other ranks end a little later:
// mpirun kills all when the first one ends.
bool prints_errors(int argc, char** argv) {
  constexpr int kForTheFirst = 300;  // milliseconds
  for (const char* name : {"config", "data", "checkpoints", "encoders", "launch", "submit", "requeue", "status"})
    if (argc > 1 && std::strcmp(argv[1], name) == 0 && !(argc > 2 && std::strcmp(argv[2], "encode") == 0)) return true;
  if (muster::distributed::expected_rank() == 0) return true;
  poll(nullptr, 0, kForTheFirst);
  return false;
}

// What a command prints is its result, except for those whose result is the run directory: a finished run must not look
// like a failed one. Whoever closes a pipe (head, less) has seen what they wanted.
void require_written_output(const CLI::App& app) {
  if (app.got_subcommand("train") || app.got_subcommand("resume")) return;
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return;
  const std::string reason = std::strerror(errno);
  pollfd output{STDOUT_FILENO, POLLOUT, 0};
  if (poll(&output, 1, 0) == 1 && (output.revents & POLLERR)) return;
  throw Error(ExitCode::kIo,
              fmt::format("standard output could not be written ({}): what was printed is incomplete", reason));
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
muster::AddressSpace address_space() {
  muster::AddressSpace space;
  space.is_limited = false;
  for (const auto resource : {RLIMIT_AS, RLIMIT_DATA})
    if (rlimit limit{}; getrlimit(resource, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) space.is_limited = true;
  const int setting = open("/proc/sys/vm/overcommit_memory", O_RDONLY | O_CLOEXEC);
  if (char mode; setting >= 0 && read(setting, &mode, 1) == 1) space.overcommit = mode;
  close(setting);
  space.pages = sysconf(_SC_PHYS_PAGES);
  space.page_bytes = sysconf(_SC_PAGESIZE);
  return space;
}

// What the heap may grow to in huge pages: as much as the heap's place has room for.
size_t heap_that_fits(const muster::AddressSpace& space) {
  const size_t wanted = muster::heap_to_reserve(space);
  if (wanted == muster::kLeastHeap) return wanted;
  if (sbrk(static_cast<intptr_t>(wanted)) == reinterpret_cast<void*>(-1)) return muster::kLeastHeap;
  sbrk(-static_cast<intptr_t>(wanted));
  return wanted;
}
#endif

// Large tensors live for one step. By default the allocator maps each anew, which the kernel clears page by page, and
// returns it: a tenth of a step's time. So freed memory stays with the process for the next step. And it is in huge
// pages: in small ones the processor spends a sixth of a large encoder's step looking up addresses, and a command takes
// half as long again to start, because LibTorch registers thousands of operators while it is loaded. The user's own
// settings take precedence.
void prepare_the_heap(char** environment) {
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  for (char** variable = environment; *variable; ++variable)
    if (std::strncmp(*variable, "MALLOC_", 7) == 0 || std::strncmp(*variable, "GLIBC_TUNABLES=", 15) == 0) return;
  const muster::AddressSpace space = address_space();
  if (space.is_limited) return;  // what is freed must go back: a thread's stack or the next trial needs it
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);  // never
  const size_t reserved = heap_that_fits(space);
  char* const begin = static_cast<char*>(std::malloc(reserved));
  if (!begin) return;
  char* const end = static_cast<char*>(sbrk(0));
  // Where the heap could not grow there, malloc took the memory elsewhere.
  if (end >= begin + reserved && end <= begin + reserved + muster::kHugePage)
    muster::prefer_huge_pages(begin, static_cast<size_t>(end - begin));
  std::free(begin);  // the heap keeps it
#endif
}

// A process whose working directory was deleted: MKL ends it with "Cannot load libtorch_cpu.so" while libraries are
// initialised.
void require_working_directory() {
  char path[4096];
  if (syscall(SYS_getcwd, path, sizeof path) >= 0) return;
  constexpr char text[] = "muster: the working directory cannot be used: was it deleted? Change to another one\n";
  [[maybe_unused]] const long written = syscall(SYS_write, STDERR_FILENO, text, sizeof text - 1);
  syscall(SYS_exit_group, static_cast<int>(ExitCode::kIo));
}

// What must come before the libraries' own initialisation: the loader calls the functions of this list first.
void prepare(int, char**, char** environment) {
  require_working_directory();
  prepare_the_heap(environment);
}
[[gnu::used, gnu::section(".preinit_array")]] void (*const before_libraries)(int, char**, char**) = prepare;

int run(int argc, char** argv) {
  muster::open_missing_standard_streams();
  // What a command does is not undone because nobody reads its output any more. Programs that it starts get the
  // default.
  std::signal(SIGPIPE, SIG_IGN);
  // Dataset files are on network file systems where locking hangs or is refused; they are only ever read here.
  setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
  muster::run::set_job_identity(muster::launcher::this_job());
  CLI::App app{"muster: exact distributed training of multimodal emotion models", "muster"};
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);
  app.set_version_flag("--version", MUSTER_VERSION);
  muster::launcher::add_train_command(app);
  muster::launcher::add_resume_command(app);
  muster::launcher::add_evaluate_command(app);
  muster::launcher::add_predict_command(app);
  muster::launcher::add_config_command(app);
  muster::launcher::add_data_command(app);
  muster::launcher::add_importer_commands(app);
  muster::launcher::add_encode_command(app);
  muster::launcher::add_checkpoints_command(app);
  muster::launcher::add_encoders_command(app);
  muster::launcher::add_launch_command(app);
  muster::launcher::add_submit_command(app);
  muster::launcher::add_requeue_command(app);
  muster::launcher::add_status_command(app);
  muster::launcher::add_doctor_command(app);
  muster::launcher::add_search_command(app);
  muster::launcher::add_study_command(app);
  try {
    app.parse(argc, argv);
    require_written_output(app);
    return static_cast<int>(ExitCode::kDone);
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::CallForAllHelp&) {
    std::fputs(app.help("", CLI::AppFormatMode::All).c_str(), stdout);
    return 0;
  } catch (const CLI::CallForVersion&) {
    std::puts(MUSTER_VERSION);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (prints_errors(argc, argv))
      muster::print_error("muster: {}\nSee: muster --help, muster <command> --help\n", error.what());
    return static_cast<int>(ExitCode::kUsage);
  } catch (const Error& error) {
    if (prints_errors(argc, argv)) muster::print_error("muster: {}\n", muster::first_lines(error.what(), kMostLines));
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    muster::print_error("muster: internal error: {}\n", muster::first_lines(error.what(), kMostLines));
    return static_cast<int>(ExitCode::kInternal);
  }
}

}  // namespace

// Everything that others could miss is closed by now: run directories, MPI, child processes. At the exit of a process
// LibTorch takes its thousands of operators apart, which is a third of the time of a short command: so it is left out.
int main(int argc, char** argv) {
  const int code = run(argc, argv);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // these report at the exit
  std::fflush(nullptr);
  ::_exit(code);
#endif
  return code;
}
