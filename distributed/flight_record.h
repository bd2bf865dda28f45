#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "distributed/collective_call.h"

namespace muster::distributed {

// What a rank is doing, for deadlines and messages.
enum class Phase : int32_t { kSetup, kStep, kSave, kEvaluation };
const char* name_of(Phase phase);  // "setup", "step", "save", "evaluation"

// One collective as this rank saw it. Times are microseconds since 1970.
struct FlightEntry {
  int64_t number = 0;  // 1 for this process's first collective, on any communicator; 0: none
  Phase phase = Phase::kSetup;
  char communicator[28] = "";  // of a longer name, its end
  CollectiveCall call;
  int64_t entered = 0;
  int64_t completed = 0;  // 0: not yet; kFailed: it ended by an error
  static constexpr int64_t kFailed = -1;
};
static_assert(std::is_trivially_copyable_v<FlightEntry>);

// The last collectives of this process. Written without locks by the threads that call collectives, at the cost of
// copying an entry; any thread may read at any time, and then misses what is being overwritten.
class FlightRecorder {
 public:
  static constexpr int kEntries = 64;

  // Returns the entry's number.
  int64_t enter(const CollectiveCall& call, const std::string& communicator, Phase phase);
  void complete(int64_t number, bool failed = false);

  std::vector<FlightEntry> entries() const;  // oldest first, at most kEntries
  FlightEntry last_entered() const;          // number 0: none
  FlightEntry last_completed() const;        // number 0: none

 private:
  static constexpr size_t kWords = (sizeof(FlightEntry) + 7) / 8;
  struct Slot {
    std::atomic<int64_t> number{0};  // of the entry that the words hold; 0 while they change
    std::atomic<int64_t> completed{0};
    std::array<std::atomic<uint64_t>, kWords> words{};
  };
  bool read(int64_t number, FlightEntry& entry) const;

  std::array<Slot, kEntries> slots_;
  std::atomic<int64_t> newest_{0};
  std::atomic<int64_t> newest_completed_{0};
};

// What a flight record holds besides its entries.
struct FlightRecordHeader {
  int rank = 0;
  int world_size = 1;
  std::string host;
  Phase phase = Phase::kSetup;
  std::string message;       // why it was written
  std::vector<int> missing;  // ranks that are considered failed
};

// The record as JSON text; docs/faults.md describes its fields.
std::string flight_record_json(const FlightRecordHeader& header, const std::vector<FlightEntry>& entries);

}  // namespace muster::distributed
