#include "distributed/flight_record.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

namespace muster::distributed {
namespace {

int64_t now_in_microseconds() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

nlohmann::ordered_json time_or_null(int64_t microseconds) {
  if (microseconds <= 0) return nullptr;
  return static_cast<double>(microseconds) / 1e6;
}

}  // namespace

const char* name_of(Phase phase) {
  static constexpr const char* kNames[] = {"setup", "step", "save", "evaluation"};
  const auto index = static_cast<size_t>(phase);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

int64_t FlightRecorder::enter(const CollectiveCall& call, const std::string& communicator, Phase phase) {
  FlightEntry entry;
  const int64_t number = entry.number = newest_.fetch_add(1, std::memory_order_relaxed) + 1;
  entry.phase = phase;
  const size_t kept = std::min(communicator.size(), sizeof entry.communicator - 1);
  std::memcpy(entry.communicator, communicator.data() + communicator.size() - kept, kept);
  entry.call = call;
  entry.entered = now_in_microseconds();
  uint64_t words[kWords] = {};
  std::memcpy(words, &entry, sizeof entry);
  Slot& slot = slots_[number % kEntries];
  slot.number.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  slot.completed.store(0, std::memory_order_relaxed);
  for (size_t i = 0; i < kWords; ++i) slot.words[i].store(words[i], std::memory_order_relaxed);
  slot.number.store(number, std::memory_order_release);
  return number;
}

void FlightRecorder::complete(int64_t number, bool failed) {
  Slot& slot = slots_[number % kEntries];
  if (slot.number.load(std::memory_order_relaxed) == number)
    slot.completed.store(failed ? FlightEntry::kFailed : now_in_microseconds(), std::memory_order_release);
  if (!failed) newest_completed_.store(number, std::memory_order_release);
}

bool FlightRecorder::read(int64_t number, FlightEntry& entry) const {
  const Slot& slot = slots_[number % kEntries];
  if (number <= 0 || slot.number.load(std::memory_order_acquire) != number) return false;
  uint64_t words[kWords];
  for (size_t i = 0; i < kWords; ++i) words[i] = slot.words[i].load(std::memory_order_relaxed);
  const int64_t completed = slot.completed.load(std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (slot.number.load(std::memory_order_relaxed) != number) return false;
  std::memcpy(&entry, words, sizeof entry);
  entry.completed = completed;
  return true;
}

std::vector<FlightEntry> FlightRecorder::entries() const {
  std::vector<FlightEntry> found;
  const int64_t newest = newest_.load(std::memory_order_acquire);
  for (int64_t number = std::max<int64_t>(1, newest - kEntries + 1); number <= newest; ++number) {
    FlightEntry entry;
    if (read(number, entry)) found.push_back(entry);
  }
  return found;
}

FlightEntry FlightRecorder::last_entered() const {
  FlightEntry entry;
  read(newest_.load(std::memory_order_acquire), entry);
  return entry;
}

FlightEntry FlightRecorder::last_completed() const {
  FlightEntry entry;
  read(newest_completed_.load(std::memory_order_acquire), entry);
  return entry;
}

std::string flight_record_json(const FlightRecordHeader& header, const std::vector<FlightEntry>& entries) {
  nlohmann::ordered_json record = {{"format", "muster-flight-record"},
                                   {"version", 1},
                                   {"rank", header.rank},
                                   {"world_size", header.world_size},
                                   {"host", header.host},
                                   {"process", ::getpid()},
                                   {"time", time_or_null(now_in_microseconds())},
                                   {"phase", name_of(header.phase)},
                                   {"message", header.message},
                                   {"missing_ranks", header.missing}};
  auto& collectives = record["collectives"] = nlohmann::ordered_json::array();
  for (const auto& entry : entries) {
    const auto& call = entry.call;
    std::vector<int64_t> sizes(call.shape, call.shape + std::clamp(call.dims, 0, 4));
    collectives.push_back({{"number", entry.number},
                           {"communicator", entry.communicator},
                           {"sequence", call.sequence},
                           {"label", call.label},
                           {"kind", name_of(call.kind)},
                           {"call", describe(call)},
                           {"sizes", sizes},
                           {"own", call.own},
                           {"phase", name_of(entry.phase)},
                           {"entered", time_or_null(entry.entered)},
                           {"completed", time_or_null(entry.completed)},
                           {"failed", entry.completed == FlightEntry::kFailed}});
  }
  return record.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace muster::distributed
