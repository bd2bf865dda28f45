#include "distributed/watchdog_thread.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/files.h"
#include "base/host.h"
#include "base/process.h"
#include "distributed/fault.h"
#include "distributed/packing.h"
#include "distributed/watchdog.h"

namespace muster::distributed {
namespace {

using namespace std::chrono_literals;

constexpr auto kHeartbeat = 500ms;
constexpr auto kOtherDeaths = 200ms;   // from a death until it is reported: ranks that die together are named together
constexpr auto kRollCall = 300ms;      // for the thread that waits in a collective to report the missing ranks
constexpr auto kSignOfLife = 1300ms;   // a rank that has sent nothing for so long since a deadline passed does not run
constexpr auto kLongSilence = 5s;      // such a rank does not run, whatever else has happened
constexpr auto kRankZeroDecides = 1s;  // more than rank 0 takes to inform all
constexpr auto kOthersReport = 700ms;  // where rank 0 does not run: for a lower rank that waits too to report and end
constexpr auto kAborting = 3s;         // for mpirun to end this process when another rank ends the job

struct Introduction {
  int32_t process;
  char machine[128];  // the same string exactly for processes that can see each other
  char host[64];
  NetworkAddresses addresses;
};

int open_process(pid_t process) {
#ifdef SYS_pidfd_open
  return static_cast<int>(::syscall(SYS_pidfd_open, process, 0));
#else
  errno = ENOSYS;
  return -1;
#endif
}

Introduction introduce_self() {
  Introduction own{};
  own.process = ::getpid();
  const HostIdentity identity = this_process();
  // Processes of two containers on one machine do not know each other's numbers.
  std::snprintf(own.machine, sizeof own.machine, "%s %s", identity.boot_id.c_str(), identity.process_namespace.c_str());
  std::snprintf(own.host, sizeof own.host, "%s", identity.host.c_str());
  own.addresses = own_addresses();
  return own;
}

void add(std::vector<int>& ranks, const std::vector<int>& more) {
  ranks.insert(ranks.end(), more.begin(), more.end());
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
}

}  // namespace

Watchdog::Watchdog(int rank, int size, const std::function<std::vector<std::string>(const std::string&)>& gather)
    : rank_(rank),
      size_(size),
      process_fds_(size, -1),
      said_goodbye_(size, 0),
      died_(size, 0),
      views_(size),
      heard_(size, Clock::now()) {
  const Introduction own = introduce_self();
  const auto all = gather(bytes_of(own));
  bool one_machine = true;
  std::vector<NetworkAddresses> addresses;
  for (int peer = 0; peer < size; ++peer) {
    Introduction theirs;
    std::memcpy(&theirs, all[peer].data(), sizeof theirs);
    views_[peer].host = theirs.host;
    if (peer != rank) addresses.push_back(theirs.addresses);
    const bool here = std::strcmp(theirs.machine, own.machine) == 0;
    one_machine = one_machine && here;
    if (!here || peer == rank) continue;
    process_fds_[peer] = open_process(theirs.process);
    if (process_fds_[peer] < 0 && errno == ESRCH) died_[peer] = 1;
  }
  channel_.emplace(rank, size);
  std::string address;
  if (rank == 0)
    address = channel_->listen(one_machine ? std::vector{ControlChannel::kLoopback} : addresses_facing(addresses));
  address.resize(ControlChannel::kAddressBytes, '\0');
  address_ = gather(address)[0];
  starter_process_ = open_process(::getppid());
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  report_progress();
  const SignalsBlocked for_the_main_thread;
  thread_ = std::thread([this] { loop(); });
  pthread_setname_np(thread_.native_handle(), "watchdog");
}

Watchdog::~Watchdog() {
  if (thread_.joinable()) {
    request_ = Request::kEnd;
    ::eventfd_write(wake_, 1);
    thread_.join();
  }
  for (const int fd : process_fds_)
    if (fd >= 0) ::close(fd);
  if (starter_process_ >= 0) ::close(starter_process_);
  ::close(wake_);
}

void Watchdog::announce_abort(ExitCode code) {
  if (!thread_.joinable()) return;
  requested_code_ = static_cast<int>(code);
  request_ = Request::kAbort;
  ::eventfd_write(wake_, 1);
  thread_.join();
}

void Watchdog::absent(std::vector<int> ranks_of_job) {
  answer_ = new std::vector<int>(std::move(ranks_of_job));
  ::eventfd_write(wake_, 1);
  while (true) ::pause();
}

RankStatus Watchdog::own_status() const {
  return {current_phase(), flight_recorder().last_entered(), flight_recorder().last_completed()};
}

void Watchdog::loop() {
  // In a very short job rank 0 may have ended already: a failure deserves a note only while the job lasts.
  auto note_at = Clock::time_point::max();
  if (rank_ != 0 && !channel_->connect(address_)) note_at = Clock::now() + 5s;
  Clock::time_point next_heartbeat = Clock::now();
  while (true) {
    const auto now = Clock::now();
    if (now >= next_heartbeat) {
      next_heartbeat = now + kHeartbeat;
      channel_->send_to_all(ControlChannel::Kind::kStatus, bytes_of(own_status()), true);
    }
    if (now >= note_at) {
      note_at = Clock::time_point::max();
      try_write_all(STDERR_FILENO,
                    fmt::format("muster: note: rank {} (host {}) cannot reach rank 0 (host {}) over TCP: "
                                "lost ranks of other machines will be noticed by deadlines only.\n",
                                rank_, views_[rank_].host, views_[0].host));
    }
    if (aborted_ && now - *aborted_ > kAborting) ::_exit(abort_code_);
    // After the last collective no rank can be missing.
    if (request_ == Request::kEnd || (!fault_ && request_ == Request::kAbort)) return say_goodbye();
    if (!aborted_ && !fault_) check_deadline();
    if (!aborted_ && fault_) advance_fault();
    Clock::duration patience = next_heartbeat - Clock::now();
    if (fault_)
      patience = std::min<Clock::duration>(patience, 20ms);
    else if (const double limit = deadline_of(current_phase());
             limit > 0)  // exactly then: all ranks find it together, before the first one ends
      patience = std::min(patience, std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit)) -
                                        (Clock::now() - last_progress() - suspended_));
    wait_and_read(std::max<Clock::duration>(patience, 0ms));
  }
}

void Watchdog::wait_and_read(Clock::duration patience) {
  if (aborted_) return std::this_thread::sleep_for(20ms);  // messages no longer matter
  std::vector<pollfd> waits{{wake_, POLLIN, 0}, {starter_process_, POLLIN, 0}};
  for (const int fd : process_fds_) waits.push_back({fd, POLLIN, 0});
  channel_->add_to(waits);
  const auto before = Clock::now();
  ::poll(waits.data(), waits.size(),
         static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(patience).count()) + 1);
  const auto away = Clock::now() - before - patience;
  if (away > 2s) {  // this process was stopped, perhaps with the whole job: that time does not count
    if (last_progress() > suspended_since_progress_) suspended_ = {};
    suspended_since_progress_ = Clock::now();
    suspended_ += away;
  }
  eventfd_t count;
  if (waits[0].revents) ::eventfd_read(wake_, &count);
  // Messages are handled before the ends of processes.
  for (const auto& event : channel_->receive()) take(event);
  if (aborted_) return;
  if (waits[1].revents) {
    open_fault().orphaned = true;
    ::close(starter_process_);
    starter_process_ = -1;
  }
  for (int peer = 0; peer < size_; ++peer)
    if (waits[2 + peer].revents) lose(peer);
}

void Watchdog::take(const ControlChannel::Event& event) {
  std::string payload = event.payload;
  heard_[event.rank] = Clock::now();
  switch (event.kind) {
    case ControlChannel::Kind::kHello:
    case ControlChannel::Kind::kMessage:
      break;
    case ControlChannel::Kind::kStatus:
      views_[event.rank].heard = take_value(payload, views_[event.rank].status);
      break;
    case ControlChannel::Kind::kLeaving: {
      int32_t rank = 0, code = -1;
      if (!take_value(payload, rank) || !take_value(payload, code) || rank < 0 || rank >= size_) break;
      said_goodbye_[rank] = 1;
      if (code < 0) break;
      // The rank that ends the job gets it last, and then knows that all others have it.
      if (rank_ == 0) {
        await_connections();
        for (int peer = 1; peer < size_; ++peer)
          if (peer != rank) channel_->send(peer, ControlChannel::Kind::kLeaving, event.payload);
        channel_->send(rank, ControlChannel::Kind::kLeaving, event.payload);
      }
      abort_code_ = code;
      aborted_ = Clock::now();
      set_fault_found();
      break;
    }
    case ControlChannel::Kind::kReport: {
      RankStatus waiting;
      double seconds = 0;
      if (!take_value(payload, waiting) || !take_value(payload, seconds)) break;
      const auto ranks = unpack(payload, size_);
      Fault& fault = open_fault();
      if (seconds > 0) {
        if (fault.no_progress == 0) fault.waiting = waiting, fault.no_progress = seconds;
        add(fault.suspects, ranks);
        asks_ = true;  // the ranks that this one waits for count too
      } else {
        for (const int rank : ranks) died_[rank] = 1;
      }
      break;
    }
    case ControlChannel::Kind::kVerdict: {
      int32_t reporter = 0;
      take_value(payload, reporter);
      const auto missing = unpack(payload, size_);
      leave(missing, payload, std::clamp(reporter, 0, size_ - 1));
    }
    case ControlChannel::Kind::kEnd:
      // On this machine the process itself shows when it ends. A rank whose status never arrived may have left before
      // it read the first message.
      if (process_fds_[event.rank] < 0 && views_[event.rank].heard) lose(event.rank);
      break;
  }
}

void Watchdog::lose(int rank) {
  if (process_fds_[rank] >= 0) ::close(process_fds_[rank]);
  process_fds_[rank] = -1;
  if (said_goodbye_[rank] || died_[rank] || request_ == Request::kAbort) return;
  died_[rank] = 1;
  open_fault();
}

Watchdog::Fault& Watchdog::open_fault() {
  if (!fault_) {
    fault_.emplace();
    fault_->found = Clock::now();
    fault_->waiting = own_status();
    set_fault_found();
    // mpirun sends it to all ranks as soon as the first one ends, and kills a second later.
    ::signal(SIGTERM, SIG_IGN);
  }
  return *fault_;
}

void Watchdog::check_deadline() {
  if (any_died()) open_fault();  // before this watchdog started
  const double limit = deadline_of(current_phase());
  const auto progress = last_progress();
  if (progress > suspended_since_progress_) suspended_ = {};
  const std::chrono::duration<double> waited = Clock::now() - progress - suspended_;
  if (limit <= 0 || waited.count() <= limit) return;
  asks_ = true;
  open_fault().no_progress = limit;
  fault_->own_deadline = true;
}

bool Watchdog::is_ready(const Fault& fault) const {
  const auto age = Clock::now() - fault.found;
  const bool deaths = any_died();
  if (rank_ == 0 || died_[0] || !channel_->reaches(0)) {
    if (deaths || fault.orphaned) return age >= kOtherDeaths;
    // Every rank that runs has sent something since: nothing more will become known.
    const auto has_sent = [&](int rank) {
      return rank == rank_ || heard_[rank] > fault.found || !channel_->reaches(rank);
    };
    bool all_sent = true;
    for (int rank = 0; rank < size_; ++rank)
      if (fault.suspects.empty() || std::count(fault.suspects.begin(), fault.suspects.end(), rank))
        all_sent = all_sent && has_sent(rank);
    return (all_sent && age >= kOtherDeaths) || age >= kSignOfLife;
  }
  if (deaths || fault.orphaned)
    return age >= kOtherDeaths + kRankZeroDecides || Clock::now() - heard_[0] > kLongSilence;
  // Ranks hear of each other from rank 0. In an exchange of two that has nothing for rank 0 some get ahead, and then
  // wait for the others as well.
  if (heard_[0] < fault.found)
    return age >= (unheard_suspects(fault).empty() ? kSignOfLife : kSignOfLife + kOthersReport);
  return age >= kRollCall + kSignOfLife + kRankZeroDecides;
}

// Ranks below this one that it waits for and knows nothing about.
std::vector<int> Watchdog::unheard_suspects(const Fault& fault) const {
  std::vector<int> unheard;
  for (const int rank : fault.suspects)
    if (rank != 0 && rank < rank_ && !views_[rank].heard) unheard.push_back(rank);
  return unheard;
}

void Watchdog::advance_fault() {
  Fault& fault = *fault_;
  if (!fault.counted) {
    const std::vector<int>* answer = answer_;
    if (fault.no_progress > 0 && !answer && Clock::now() - fault.found < kRollCall && !any_died()) return;
    fault.counted = true;
    if (answer)
      add(fault.suspects, *answer);
    else if (fault.own_deadline && !fault.waiting.inside())
      add(fault.suspects, {rank_});
  }
  std::vector<int> died;
  for (int rank = 0; rank < size_; ++rank)
    if (died_[rank]) died.push_back(rank);
  if (rank_ != 0 && !fault.reported && !fault.orphaned) {
    fault.reported = true;
    const double seconds = died.empty() ? fault.no_progress : 0;
    channel_->send(0, ControlChannel::Kind::kReport,
                   bytes_of(fault.waiting) + bytes_of(seconds) + pack(died.empty() ? fault.suspects : died));
  }
  if (is_ready(fault)) conclude(fault);
}

void Watchdog::conclude(const Fault& fault) {
  if (rank_ != 0 && !died_[0] && heard_[0] < fault.found && fault.no_progress > 0)
    for (const int rank : unheard_suspects(fault))
      if (died_[rank]) {  // it ran, waited for rank 0 like this one, has said so and ended
        views_[0].silent = true;
        return leave({0}, describe_fault({0}, views_, fault.waiting, fault.no_progress), rank);
      }
  std::vector<int> missing;
  views_[rank_].heard = true;
  views_[rank_].status = own_status();
  for (int rank = 0; rank < size_; ++rank) {
    views_[rank].died = died_[rank];
    if (died_[rank]) missing.push_back(rank);
  }
  const bool deaths = !missing.empty();
  for (int rank = 0; rank < size_; ++rank) {
    if (rank == rank_ || died_[rank] || !channel_->reaches(rank)) continue;
    views_[rank].silent = deaths || fault.orphaned
                              ? Clock::now() - heard_[rank] > kLongSilence
                              : heard_[rank] < fault.found && Clock::now() - fault.found >= kSignOfLife;
    if (views_[rank].silent) add(missing, {rank});
  }
  if (!deaths) {
    // A rank that waits for others is missing too, but is not the cause when another rank is.
    auto causes = fault.suspects;
    const auto waits = [&](int rank) {
      return views_[rank].heard && !views_[rank].silent && views_[rank].status.inside();
    };
    causes.erase(std::remove_if(causes.begin(), causes.end(), waits), causes.end());
    add(missing, causes);
    if (missing.empty()) add(missing, fault.suspects);
  }
  std::string text = describe_fault(missing, views_, fault.waiting, deaths ? 0 : fault.no_progress);
  if (fault.orphaned) {
    missing.clear();
    text = fmt::format(
        "the program that started the ranks of host {} (mpirun, or its daemon there) has ended without them.",
        views_[rank_].host);
  }
  // The lowest rank that is not missing prints the message. When all are, because each hangs by itself: the lowest that
  // runs.
  int32_t reporter = 0;
  while (std::count(missing.begin(), missing.end(), reporter)) ++reporter;
  if (reporter == size_) reporter = 0;
  while (reporter < rank_ && (views_[reporter].died || views_[reporter].silent)) ++reporter;
  // Rank 0 informs all. If it does not run, it finds this message when it wakes up, and then prints nothing.
  channel_->send_to_all(ControlChannel::Kind::kVerdict, bytes_of(reporter) + pack(missing) + text);
  leave(missing, text, reporter);
}

void Watchdog::leave(const std::vector<int>& missing, const std::string& text, int reporter) {
  set_fault_found();
  ::signal(SIGTERM, SIG_IGN);
  const bool reports = rank_ == reporter;
  end_process(
      {rank_, size_, views_[rank_].host, missing, text, reports, reports ? -1 : process_fds_[reporter], own_status()});
}

void Watchdog::await_connections() {
  const auto end = Clock::now() + 1s;
  for (int peer = 1; peer < size_ && Clock::now() < end;) {
    if (died_[peer] || said_goodbye_[peer] || channel_->reaches(peer)) {
      ++peer;
      continue;
    }
    std::vector<pollfd> waits;
    channel_->add_to(waits);
    ::poll(waits.data(), waits.size(), 10);
    channel_->receive();
  }
}

void Watchdog::say_goodbye() {
  const bool abort = request_ == Request::kAbort;
  const int32_t code = abort ? requested_code_.load() : -1;
  if (abort && rank_ == 0) await_connections();
  channel_->receive();  // ranks that have just connected get it too
  const std::string goodbye = bytes_of(static_cast<int32_t>(rank_)) + bytes_of(code);
  channel_->send_to_all(ControlChannel::Kind::kLeaving, goodbye);
  const auto end = Clock::now() + 2s;
  // Rank 0 forwards it, to this rank last.
  while (abort && rank_ != 0 && channel_->reaches(0) && !aborted_ && Clock::now() < end) {
    std::vector<pollfd> waits;
    channel_->add_to(waits);
    ::poll(waits.data(), waits.size(), 10);
    for (const auto& event : channel_->receive())
      if (event.kind == ControlChannel::Kind::kLeaving) take(event);
  }
  channel_.reset();
}

}  // namespace muster::distributed
