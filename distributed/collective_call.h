#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

namespace muster::distributed {

// kEnd: the last one, before the ranks leave the job.
enum class Collective : int32_t {
  kAllReduceSum,
  kAllGatherRows,
  kAllToAllRows,
  kBroadcast,
  kAllGatherBytes,
  kSplit,
  kEnd
};

// Names the purpose of the collectives that this thread calls while it lives: "gradients", "embeddings". Messages and
// flight records show it, and ranks that give different labels to one collective disagree. The innermost counts. Of
// `label`, which must outlive this, 23 characters are kept; plain ASCII.
class CollectiveLabel {
 public:
  explicit CollectiveLabel(const char* label);
  ~CollectiveLabel();
  CollectiveLabel(const CollectiveLabel&) = delete;
  CollectiveLabel& operator=(const CollectiveLabel&) = delete;
  static const char* current();  // "" outside of all

 private:
  const char* previous_;
};

// What a rank is about to do, in fixed size: ranks exchange these before every collective (checked_communicator.h), and
// the flight record keeps them.
struct CollectiveCall {
  int64_t sequence = 0;  // 1 for a communicator's first collective
  char label[24] = "";   // what it is for; see CollectiveLabel
  Collective kind = Collective::kAllGatherBytes;
  int32_t dtype = -1;   // at::ScalarType; -1: no tensor
  int32_t device = -1;  // at::DeviceType
  int32_t root = -1;
  int32_t dims = 0;          // of the tensor, or of one row
  int64_t shape[4] = {};     // its first four sizes, for messages
  uint64_t shape_hash = 0;   // of all sizes
  uint64_t counts_hash = 0;  // all_gather_rows: of the row counts, which are the same list everywhere

  // Not the same on every rank:
  int64_t own = 0;  // all_gather_bytes: length; split: group; rows: number of rows given
  // all_to_all_rows: sums over peers of a hash of (from, to, rows). All ranks' sums of sends and of receives are equal
  // exactly when every count matches its counterpart, which all ranks can thus see from these calls alone.
  uint64_t sends_hash = 0;
  uint64_t receives_hash = 0;
};
static_assert(std::is_trivially_copyable_v<CollectiveCall>);

// Names of the ranks of a communicator in messages: numbers in the job, and what the communicator is called.
struct RankNames {
  std::string communicator;  // "world"; "world/1" for group 1 that world was split into
  std::vector<int> ranks;    // by rank of the communicator, the rank in the job
};
RankNames world_names(int size);

// "all_reduce_sum(float32 [7])", "all_reduce_sum(float32 [7]) for gradients"
std::string describe(const CollectiveCall& call);
const char* name_of(Collective kind);  // "all_reduce_sum"
// "collective 7 of world"
std::string place(const CollectiveCall& call, const std::string& communicator);
// "rank 3", "ranks 0, 1 and 5-8"
std::string list_ranks(std::vector<int> ranks);
uint64_t hash_of(const std::vector<int64_t>& numbers);
uint64_t hash_of_transfer(int from, int to, int64_t rows);

// The ranks 0 ... count - 1 in groups of those that are the same. The last group is the majority (at a tie the one of
// the lowest rank), so that a message can name those that differ first.
std::vector<std::vector<int>> groups_of_same(int count, const std::function<bool(int, int)>& same);

// What each of these groups has to say, in one sentence: "a, b, while c", the majority last.
std::string contrast(const std::vector<std::vector<int>>& groups,
                     const std::function<std::string(const std::vector<int>& group, bool is_majority)>& clause);

// Empty when `calls`, one per rank, match; otherwise the message: which ranks differ from the majority, what they
// called, and what the others called.
std::string disagreement(const std::vector<CollectiveCall>& calls, const RankNames& names);
// The same for all_to_all_rows whose hashes show that counts do not match: `sends` and `receives` are all ranks'
// counts.
std::string misfit(const CollectiveCall& call, const std::vector<std::vector<int64_t>>& sends,
                   const std::vector<std::vector<int64_t>>& receives, const RankNames& names);
// Message for the ranks that wait: `missing` (ranks of the communicator) did not reach `call` within `waited` seconds.
std::string absence(const CollectiveCall& call, const CollectiveCall& last_completed, const std::vector<int>& missing,
                    double waited, const RankNames& names);

// MUSTER_COLLECTIVE_TIMEOUT, in seconds; 0 where it is not set. Throws Error(kUsage) for what is not a positive number.
double timeout_from_environment();

// The collective timeout of ranks that are threads, and of NCCL: 1800 s, or MUSTER_COLLECTIVE_TIMEOUT, which throws
// likewise.
std::chrono::duration<double> collective_deadline();

}  // namespace muster::distributed
