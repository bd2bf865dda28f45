#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "distributed/error.h"

namespace muster::distributed {

// The ranks of one job, and what they can do together. Every function but rank(), size() and abort() is collective: all
// ranks must call it, in the same order, with matching arguments. All calls block until the result is there.
// Tensors are on the CPU, contiguous, and float32, float64 or int64. Not for use from two threads at once.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Ranks that share this rank's machine, itself included.
  virtual int local_size() const = 0;

  // Replaces `tensor` (same shape and dtype everywhere) by its sum over ranks. Every rank gets the same bits.
  virtual void all_reduce_sum(at::Tensor tensor) = 0;

  // Concatenates the ranks' rows in rank order. `rows` is [row_counts[rank()], ...] with the same trailing shape and dtype
  // everywhere; counts may be 0 and differ. Returns a new tensor [sum of row_counts, ...].
  virtual at::Tensor all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) = 0;

  // The control plane: one byte string per rank, any lengths, returned in rank order on every rank.
  virtual std::vector<std::string> all_gather_bytes(const std::string& bytes) = 0;

  // Ends the whole job at once, when ranks can no longer meet (an exception on one of them). Any rank may call it alone.
  [[noreturn]] virtual void abort(ExitCode code) = 0;
};

// A job of one process; needs no MPI.
std::unique_ptr<Communicator> make_solo_communicator();

// The ranks of this job: MPI's world when the process was started by mpirun or srun as one of several, otherwise a job of one
// (MPI is then not started: it costs a quarter of a second). Throws Error(kUsage) when the starter promised more ranks than MPI
// found, which would silently train as many separate models.
std::unique_ptr<Communicator> connect();

// The MPI library's own description of its version; needs no started MPI.
std::string mpi_library_version();

// Runs `work` on every rank and lets all succeed or all throw. When any rank throws, every rank throws one SharedError that names
// the ranks that failed (unless all failed alike) and carries the first failing rank's exit code. Collective; `work` itself
// must not contain collectives that only some ranks reach.
void together(Communicator& communicator, const std::function<void()>& work);

}  // namespace muster::distributed
