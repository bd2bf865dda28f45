#include "distributed/mpi.h"

// Open MPI 4's header otherwise brings in the removed C++ bindings and needs their library.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace muster::distributed {
namespace {

// Counts of one MPI call are int: larger tensors go in pieces.
constexpr int64_t kLargestCount = int64_t{1} << 28;

MPI_Datatype mpi_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return MPI_FLOAT;
    case at::kDouble: return MPI_DOUBLE;
    case at::kLong: return MPI_INT64_T;
    default:
      throw Error(ExitCode::kInternal, std::string("collectives take float32, float64 and int64 tensors, not ") +
                                           c10::toString(tensor.scalar_type()));
  }
}

void require_plain(const at::Tensor& tensor) {
  if (!tensor.is_contiguous() || !tensor.device().is_cpu())
    throw Error(ExitCode::kInternal, "MPI collectives take contiguous tensors on the CPU");
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    MPI_Init(nullptr, nullptr);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm node;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &local_size_);
    MPI_Comm_free(&node);
  }
  ~MpiCommunicator() override { MPI_Finalize(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }

  void all_reduce_sum(at::Tensor tensor) override {
    require_plain(tensor);
    const MPI_Datatype type = mpi_type(tensor);
    char* data = static_cast<char*>(tensor.data_ptr());
    for (int64_t done = 0; done < tensor.numel(); done += kLargestCount) {
      const int count = static_cast<int>(std::min(kLargestCount, tensor.numel() - done));
      MPI_Allreduce(MPI_IN_PLACE, data + done * tensor.element_size(), count, type, MPI_SUM, MPI_COMM_WORLD);
    }
  }

  at::Tensor all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) override {
    require_plain(rows);
    if (static_cast<int>(row_counts.size()) != size_ || rows.size(0) != row_counts[rank_])
      throw Error(ExitCode::kInternal, "all_gather_rows: row counts do not fit the ranks' rows");
    auto shape = rows.sizes().vec();
    shape[0] = std::accumulate(row_counts.begin(), row_counts.end(), int64_t{0});
    at::Tensor gathered = at::empty(shape, rows.options());
    int64_t row_size = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) row_size *= shape[axis];
    // One row is one element of a derived type, so counts and displacements stay small.
    MPI_Datatype row_type;
    MPI_Type_contiguous(static_cast<int>(row_size), mpi_type(rows), &row_type);
    MPI_Type_commit(&row_type);
    std::vector<int> counts(row_counts.begin(), row_counts.end());
    std::vector<int> starts(size_, 0);
    for (int r = 1; r < size_; ++r) starts[r] = starts[r - 1] + counts[r - 1];
    MPI_Allgatherv(rows.data_ptr(), counts[rank_], row_type, gathered.data_ptr(), counts.data(), starts.data(), row_type,
                   MPI_COMM_WORLD);
    MPI_Type_free(&row_type);
    return gathered;
  }

  std::vector<std::string> all_gather_bytes(const std::string& bytes) override {
    const int size = static_cast<int>(bytes.size());
    std::vector<int> sizes(size_), starts(size_, 0);
    MPI_Allgather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, MPI_COMM_WORLD);
    for (int r = 1; r < size_; ++r) starts[r] = starts[r - 1] + sizes[r - 1];
    std::string all(starts.back() + sizes.back(), '\0');
    MPI_Allgatherv(bytes.data(), size, MPI_BYTE, all.data(), sizes.data(), starts.data(), MPI_BYTE, MPI_COMM_WORLD);
    std::vector<std::string> strings(size_);
    for (int r = 0; r < size_; ++r) strings[r] = all.substr(starts[r], sizes[r]);
    return strings;
  }

  [[noreturn]] void abort(ExitCode code) override {
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
    std::_Exit(static_cast<int>(code));
  }

 private:
  int rank_ = 0;
  int size_ = 1;
  int local_size_ = 1;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator() { return std::make_unique<MpiCommunicator>(); }

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string whole(text, length);
  return whole.substr(0, whole.find(','));  // the rest is build details
}

}  // namespace muster::distributed
