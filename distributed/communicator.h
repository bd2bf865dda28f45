#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"

namespace muster::distributed {

// The ranks of one job, or of one part of it, and what they can do together.
//
// Every function but rank(), size(), local_rank(), local_size(), bytes_sent() and abort() is collective: all ranks must
// call the same ones in the same order with matching arguments. A rank that calls another one, or the same one with
// another dtype or size, is detected and named: every rank then throws Error(kInternal) (for CUDA tensors only on
// request, see nccl.h). A rank that never makes the call is named after a timeout: in a job of MPI by the watchdog,
// which ends all ranks (watchdog.h); among threads by Error(kPeerFailed).
//
// Tensors are contiguous and live on the CPU, or, where the backend says so, on this rank's GPU. Calls on CPU tensors
// block until the result is there. Calls on CUDA tensors are queued on the current stream and return at once. Sums take
// float32, float64 and int64; collectives that only move data take any dtype. Wrong arguments throw Error(kInternal)
// before anything is sent. Not for use from two threads at once.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // This rank's place among the ranks that share its machine, and their number.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;

  // Replaces `tensor` (same shape and dtype everywhere) by its sum over ranks. Every rank gets the same bits; which
  // bits depends on the number of ranks (see tree_sum.h for sums that do not).
  virtual void all_reduce_sum(at::Tensor tensor) = 0;

  // Concatenates the ranks' rows in rank order. `rows` is [row_counts[rank()], ...] with the same trailing shape and
  // dtype everywhere; counts may be 0 and differ, and are the same list on every rank. Returns a new tensor [sum of
  // row_counts, ...].
  virtual at::Tensor all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) = 0;

  // Sends the first send_counts[0] rows to rank 0, the next send_counts[1] to rank 1, and so on. Returns a new tensor
  // [sum of receive_counts, ...]: receive_counts[0] rows from rank 0, then those from rank 1, ... Same trailing shape
  // and dtype everywhere; receive_counts[s] here must be send_counts[rank()] on rank s.
  virtual at::Tensor all_to_all_rows(const at::Tensor& rows, const std::vector<int64_t>& send_counts,
                                     const std::vector<int64_t>& receive_counts) = 0;

  // Replaces `tensor` (same shape and dtype everywhere) by rank `root`'s.
  virtual void broadcast(at::Tensor tensor, int root) = 0;

  // The control plane: one byte string per rank, any lengths, returned in rank order on every rank. Blocks.
  virtual std::vector<std::string> all_gather_bytes(const std::string& bytes) = 0;

  // Splits the ranks into groups of those that give the same `group` (any number from 0), ordered as here. Each group
  // has collectives of its own, which the other groups neither see nor wait for. The result must not outlive this
  // communicator.
  virtual std::unique_ptr<Communicator> split(int group) = 0;

  // Bytes that this rank has sent to other ranks through collectives since the start: of a tensor of b bytes on W ranks
  // all_reduce_sum counts 2 b (W-1)/W (what a bandwidth-optimal algorithm sends per rank), all_gather_rows own bytes x
  // (W-1), all_to_all_rows the bytes for others, broadcast b (W-1) on the root. The control plane is not counted.
  virtual int64_t bytes_sent() const = 0;

  // Ends the whole job at once, when ranks can no longer meet (an exception on one of them). Any rank may call it
  // alone.
  [[noreturn]] virtual void abort(ExitCode code) = 0;
};

// A job of one process; needs no MPI.
std::unique_ptr<Communicator> make_single_process_communicator();

// The ranks of this job: MPI's world when the process was started by mpirun or srun as one of several, otherwise a job
// of one (MPI is then not started: it costs a quarter of a second). Throws Error(kUsage) when the starter promised more
// ranks than MPI found, which would silently train as many separate models. CPU tensors only: see nccl.h for GPUs.
std::unique_ptr<Communicator> connect();

// The number of processes that mpirun or srun started together with this one; 1 without either, and in a shell within a
// step (`srun --pty bash`).
int expected_world_size();

// This process's rank among those, known before MPI runs. Right only in a process that is one of them: shells and what
// they start inherit the variables that say it.
int expected_rank();

// All ranks of MPI_COMM_WORLD; CPU tensors. Starts MPI, and ends it when destroyed. At most one may exist in a process.
// With several ranks its watchdog (watchdog.h) runs for as long. Destruction is collective.
// A failure that MPI reports is Error(kPeerFailed).
// `largest_bytes`: the most that one call of MPI, whose counts are int, gets; larger data is sent in pieces. Smaller
// only in tests.
std::unique_ptr<Communicator> make_mpi_communicator(int64_t largest_bytes = int64_t{1} << 30);

// The MPI library's own description of its version; needs no started MPI.
std::string mpi_library_version();

// Name and version of the MPI whose headers this was compiled with, as "Open MPI 4.1.4"; empty for an MPI that it does
// not know.
std::string mpi_headers_version();

// Runs `work` on every rank and lets all succeed or all throw. When any rank throws, every rank throws one SharedError
// that names the ranks that failed (unless all failed alike) and carries the first failing rank's exit code.
// Collective; `work` itself must not contain collectives that only some ranks reach.
void run_on_all_ranks(Communicator& communicator, const std::function<void()>& work);

// Collective. Returns when `value` is the same on every rank. Otherwise every rank throws one SharedError(code) that
// says that `what` (a noun, in the singular: "the library version") differs, names the ranks and hosts that differ from
// the majority (at a tie: from rank 0), shows the values where they are short and printable, and ends with `advice` (a
// sentence).
void require_same(Communicator& communicator, const std::string& what, const std::string& value,
                  const std::string& advice, ExitCode code = ExitCode::kBadConfig);

}  // namespace muster::distributed
