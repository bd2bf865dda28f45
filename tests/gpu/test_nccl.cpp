// The NCCL communicator held to the contract that all backends keep, on as many ranks as mpirun starts (alone: one). On
// a machine with fewer GPUs than ranks they share, so that one GPU is enough.
#include "distributed/nccl.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "distributed/device.h"
#include "tests/gpu/gpu.h"
#include "tests/parallel/contract.h"

namespace muster::distributed {
namespace {

std::unique_ptr<Communicator> world;  // NCCL over MPI, or over a job of one; null without a GPU
DeviceBinding binding;

// Lets checks that know CPU tensors only run on the GPU: every tensor makes the way there and back.
class OnGpu final : public Communicator {
 public:
  OnGpu(Communicator& inner, c10::Device device) : inner_(inner), device_(device) {}
  OnGpu(std::unique_ptr<Communicator> inner, c10::Device device)
      : owned_(std::move(inner)), inner_(*owned_), device_(device) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  int local_rank() const override { return inner_.local_rank(); }
  int local_size() const override { return inner_.local_size(); }
  int64_t bytes_sent() const override { return inner_.bytes_sent(); }
  std::vector<std::string> all_gather_bytes(const std::string& bytes) override {
    return inner_.all_gather_bytes(bytes);
  }
  void all_reduce_sum(at::Tensor tensor) override {
    const at::Tensor there = on_gpu(tensor);
    inner_.all_reduce_sum(there);
    tensor.copy_(there);
  }
  at::Tensor all_gather_rows(const at::Tensor& rows, const std::vector<int64_t>& row_counts) override {
    return inner_.all_gather_rows(on_gpu(rows), row_counts).to(at::kCPU);
  }
  at::Tensor all_to_all_rows(const at::Tensor& rows, const std::vector<int64_t>& send_counts,
                             const std::vector<int64_t>& receive_counts) override {
    return inner_.all_to_all_rows(on_gpu(rows), send_counts, receive_counts).to(at::kCPU);
  }
  void broadcast(at::Tensor tensor, int root) override {
    const at::Tensor there = on_gpu(tensor);
    inner_.broadcast(there, root);
    tensor.copy_(there);
  }
  std::unique_ptr<Communicator> split(int group) override {
    return std::make_unique<OnGpu>(inner_.split(group), device_);
  }
  [[noreturn]] void abort(ExitCode code) override {
    inner_.abort(code);
    std::_Exit(static_cast<int>(code));
  }

 private:
  // With the same strides: what is not contiguous must be refused there too.
  at::Tensor on_gpu(const at::Tensor& tensor) const {
    return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device_)).copy_(tensor);
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  c10::Device device_;
};

// The same collectives by MPI, which the communicator uses for CPU tensors.
class ControlPeer final : public contract::Peer {
 public:
  explicit ControlPeer(Communicator& ranks) : ranks_(ranks) {}
  int64_t large() const override { return int64_t{64} << 20; }
  at::Tensor sum(const contract::OfRank& put_in) override {
    const at::Tensor own = put_in(ranks_.rank()).clone();
    ranks_.all_reduce_sum(own);
    return own;
  }
  at::Tensor gather(const contract::OfRank& rows) override {
    std::vector<int64_t> counts;
    for (int rank = 0; rank < ranks_.size(); ++rank) counts.push_back(rows(rank).size(0));
    return ranks_.all_gather_rows(rows(ranks_.rank()), counts);
  }
  at::Tensor exchange(const contract::OfRank& rows, const contract::Counts& counts) override {
    std::vector<int64_t> receives;
    for (int from = 0; from < ranks_.size(); ++from) receives.push_back(counts[from][ranks_.rank()]);
    return ranks_.all_to_all_rows(rows(ranks_.rank()), counts[ranks_.rank()], receives);
  }
  at::Tensor broadcast(const contract::OfRank& put_in, int root) override {
    const at::Tensor own = put_in(ranks_.rank()).clone();
    ranks_.broadcast(own, root);
    return own;
  }

 private:
  Communicator& ranks_;
};

class Nccl : public gpu::Gpu {
 protected:
  at::TensorOptions here(at::ScalarType dtype = at::kFloat) const {
    return at::TensorOptions().device(device_).dtype(dtype);
  }
  c10::Stream another_stream() const {
    return c10::impl::VirtualGuardImpl(c10::kCUDA).getStreamFromGlobalPool(device_);
  }

  const c10::Device device_ = binding.device;
};

TEST_F(Nccl, KeepsTheContract) {
  OnGpu ranks(*world, device_);
  ControlPeer by_mpi(*world);
  for (const auto& check : contract::collective_checks()) {
    SCOPED_TRACE(check.name);
    check.run(ranks, by_mpi);
  }
}

TEST_F(Nccl, CallsFollowTheCurrentStream) {
  const c10::StreamGuard guard(another_stream());
  at::Tensor tensor = at::zeros({1 << 22}, here());
  for (int i = 0; i < 50; ++i) tensor.add_(1);  // the sum must come after these
  world->all_reduce_sum(tensor);
  tensor.mul_(2);
  EXPECT_TRUE(tensor.eq(100.0 * world->size()).all().item<bool>());
}

TEST_F(Nccl, MemoryOfAnotherStreamStaysUntilTheCallIsDone) {
  const c10::Stream stream = another_stream();
  for (int round = 0; round < 20; ++round) {
    at::Tensor gathered;
    {
      at::Tensor rows = at::full({1 << 20}, round + world->rank(), here());
      rows.sum().item<float>();  // waits until they are there
      const c10::StreamGuard guard(stream);
      gathered = world->all_gather_rows(rows, std::vector<int64_t>(world->size(), 1 << 20));
    }
    const at::Tensor other = at::full({1 << 20}, -1, here());  // would get the memory of `rows`
    stream.synchronize();
    for (int rank = 0; rank < world->size(); ++rank)
      EXPECT_TRUE(gathered.slice(0, int64_t{rank} << 20, int64_t{rank + 1} << 20).eq(round + rank).all().item<bool>());
  }
}

TEST_F(Nccl, RefusesTensorsOfOtherDevices) {
  EXPECT_THROW(world->all_reduce_sum(at::zeros({3}, at::TensorOptions().device(at::kMeta))), Error);
}

// Every rank gets the same error, and nobody waits for a collective that does not come.
TEST_F(Nccl, NamesARankThatCallsSomethingElse) {
  if (world->size() == 1) return;
  setenv("MUSTER_CHECK_COLLECTIVES", "1", 1);
  const auto checked = world->split(0);
  unsetenv("MUSTER_CHECK_COLLECTIVES");
  const int odd = world->size() - 1;
  const std::vector<std::pair<std::string, std::function<void()>>> mistakes{
      {"length", [&] { checked->all_reduce_sum(at::zeros({world->rank() == odd ? 4 : 3}, here())); }},
      {"dtype",
       [&] { checked->all_reduce_sum(at::zeros({3}, here(world->rank() == odd ? at::kDouble : at::kFloat))); }},
      {"root", [&] { checked->broadcast(at::zeros({3}, here()), world->rank() == odd ? 1 : 0); }},
      {"operation", [&] {
         if (world->rank() == odd)
           checked->broadcast(at::zeros({3}, here()), 0);
         else
           checked->all_reduce_sum(at::zeros({3}, here()));
       }}};
  for (const auto& [what, mistake] : mistakes) {
    std::string message = "no error";
    try {
      mistake();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kInternal) << what;
      message = error.what();
    }
    EXPECT_NE(message.find("rank"), std::string::npos) << what << ": " << message;
    for (const auto& other : world->all_gather_bytes(message)) EXPECT_EQ(other, message) << what;
  }
  const at::Tensor ones = at::ones({5}, here());
  checked->all_reduce_sum(ones);
  EXPECT_TRUE(ones.eq(world->size()).all().item<bool>());
}

}  // namespace
}  // namespace muster::distributed

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  using namespace muster::distributed;
  std::unique_ptr<Communicator> control;
  if (const std::string why = muster::gpu::why_no_gpu(); why.empty()) {
    try {
      control = connect();
      binding = bind_device(*control, {WantedDevice::kCuda, /*share=*/true});
      world = make_nccl_communicator(*control, binding.device);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 1;
    }
  } else if (!muster::gpu::gpu_required()) {
    std::printf("skipped: %s\n", why.c_str());
    return 77;  // what CMakeLists.txt calls skipped
  }
  const int result = RUN_ALL_TESTS();
  world.reset();
  return result;
}
