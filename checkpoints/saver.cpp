#include "checkpoints/saver.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>
#include <unordered_set>

#include "base/error.h"
#include "base/files.h"
#include "base/huge_pages.h"
#include "base/json.h"
#include "base/process.h"
#include "base/sha256.h"
#include "checkpoints/commit.h"
#include "checkpoints/folders.h"
#include "checkpoints/shares.h"

namespace muster::checkpoints {

using distributed::Communicator;
using Json = nlohmann::json;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Names, dtypes and shapes, in the order of the names; never a name twice.
std::vector<TensorInfo> describe(const std::vector<const NamedTensor*>& tensors) {
  std::vector<TensorInfo> table;
  for (const NamedTensor* item : tensors) {
    require_storable(*item);
    if (!table.empty() && table.back().name == item->name)
      throw std::invalid_argument(fmt::format("two tensors are named {}", item->name));
    table.push_back({item->name, item->tensor.scalar_type(), item->tensor.sizes().vec()});
  }
  return table;
}

bool same(const std::vector<TensorInfo>& a, const std::vector<TensorInfo>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const TensorInfo& x, const TensorInfo& y) {
    return x.name == y.name && x.dtype == y.dtype && x.shape == y.shape;
  });
}

std::string digest(const std::vector<TensorInfo>& table, const CheckpointInfo& info) {
  Sha256 hash;
  for (const TensorInfo& tensor : table) {
    hash.update(tensor.name + '\0' + safetensors_dtype(tensor.dtype));
    for (const int64_t size : tensor.shape) hash.update(fmt::format(" {}", size));
    hash.update("\n");
  }
  hash.update(fmt::format("{} {} {}\n", info.step, info.epoch, info.seed) + info.config + '\0' + info.training_state);
  return hash.hex();
}

}  // namespace

// Runs one job at a time in a thread that gets no signals: those are for the thread that trains. Jobs must not throw.
class Writer {
 public:
  // Waits for the previous job.
  void start(std::function<void()> job) {
    wait();
    const SignalsBlocked inherited;
    try {
      job_ = std::async(std::launch::async, job);
    } catch (const std::system_error&) {  // the system allows no further thread: then at once, here
      job_ = std::async(std::launch::deferred, job);
      job_.wait();
    }
  }
  // What the last job wrote may be read once this is true.
  bool idle() const { return !job_.valid() || job_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }
  void wait() const {
    if (job_.valid()) job_.wait();
  }

 private:
  std::future<void> job_;  // waits when it is destroyed
};

// The copy of a rank's shard that is written while training changes the tensors. Its memory is kept from save to save.
class Staging {
 public:
  // Memory for `size` bytes, with its pages mapped: otherwise that would happen, page by page, while training waits.
  // pinned: page-locked, as copies from GPUs need it.
  void reserve(uint64_t size, bool pinned) {
    if (buffer_.defined() && static_cast<uint64_t>(buffer_.numel()) >= size && buffer_.is_pinned() == pinned) return;
    buffer_ = at::Tensor();
    buffer_ = at::empty({static_cast<int64_t>(size)}, at::TensorOptions(at::kByte).pinned_memory(pinned));
    if (pinned) return;
    char* const begin = static_cast<char*>(buffer_.mutable_data_ptr());
    prefer_huge_pages(begin, size);
    for (uint64_t i = 0; i < size; i += 4096) begin[i] = 0;
  }

  // The contents of the shard: its head, then the pieces of `tensors`, which are in the order that `layout` refers to.
  // May be called again when the last contents are no longer needed. copy: the contents do not change with the tensors;
  // otherwise tensors on the CPU are used in place.
  std::vector<std::string_view> stage(const std::vector<const NamedTensor*>& tensors, const ShardLayout& layout,
                                      bool copy) {
    std::vector<at::Tensor> pieces;
    uint64_t to_copy = 0;
    bool pinned = false;
    const auto stays = [&](const at::Tensor& rows) { return !copy && rows.is_cpu() && rows.is_contiguous(); };
    for (const Piece& piece : layout.pieces) {
      const at::Tensor tensor = tensors[piece.tensor]->tensor.detach();
      pieces.push_back(tensor.dim() == 0 ? tensor : tensor.narrow(0, piece.first_row, piece.rows));
      pinned = pinned || tensor.is_cuda();
      if (!stays(pieces.back())) to_copy += pieces.back().nbytes();
    }
    reserve(to_copy, pinned);

    std::vector<std::string_view> contents{layout.head};
    uint64_t used = 0;
    std::unordered_set<c10::Device> devices;
    for (const at::Tensor& rows : pieces) {
      if (rows.numel() == 0) continue;
      if (stays(rows)) {
        contents.emplace_back(static_cast<const char*>(rows.const_data_ptr()), rows.nbytes());
        continue;
      }
      // Pieces are in order of falling element size, so that each is aligned.
      const at::Tensor place =
          buffer_.narrow(0, static_cast<int64_t>(used), static_cast<int64_t>(rows.nbytes())).view(rows.scalar_type());
      if (rows.is_cpu() && rows.is_contiguous()) {
        std::memcpy(place.mutable_data_ptr(), rows.const_data_ptr(), rows.nbytes());
      } else {
        place.view(rows.sizes()).copy_(rows, /*non_blocking=*/true);
        if (!rows.is_cpu()) devices.insert(rows.device());
      }
      contents.emplace_back(static_cast<const char*>(place.const_data_ptr()), rows.nbytes());
      used += rows.nbytes();
    }
    for (const c10::Device device : devices) c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
    return contents;
  }

 private:
  at::Tensor buffer_;
};

class CheckpointSaver::Implementation {
 public:
  Implementation(const std::string& folder, const Retention& retention, bool asynchronous, Communicator& communicator,
                 std::function<void()> before_commit)
      : folder_(folder),
        retention_(retention),
        asynchronous_(asynchronous),
        communicator_(communicator),
        before_commit_(std::move(before_commit)) {}

  void prepare(const std::vector<NamedTensor>& tensors) {
    if (!asynchronous_ || state_ != State::kIdle) return;
    lay_out(by_name(tensors));
    const bool pinned =
        std::any_of(tensors.begin(), tensors.end(), [](const NamedTensor& item) { return item.tensor.is_cuda(); });
    writer_.start([this, size = layout_.data_size, pinned] {
      try {
        staging_.reserve(size, pinned);
      } catch (const std::exception&) {
        // The save that needs the memory will report it.
      }
    });
  }

  std::vector<SaveOutcome> save(const CheckpointInfo& info, const std::vector<NamedTensor>& tensors, bool waits) {
    const auto begin = Clock::now();
    std::vector<SaveOutcome> outcomes;
    if (auto outcome = finish()) outcomes.push_back(std::move(*outcome));
    writer_.wait();
    begin_ = begin;

    const std::vector<const NamedTensor*> order = by_name(tensors);
    std::string own;
    distributed::run_on_all_ranks(communicator_, [&] {
      lay_out(order);
      own = digest(table_, info) + make_uuid();
    });
    const std::vector<std::string> all = communicator_.all_gather_bytes(own);
    for (const std::string& other : all) {
      if (other.substr(0, 64) != all[0].substr(0, 64)) {
        throw SharedError(ExitCode::kInternal,
                          "The ranks do not save the same checkpoint: names, shapes, dtypes or the training state "
                          "differ between them.");
      }
    }
    attempt_ = {folder_, info.step, all[0].substr(64)};
    info_ = info;
    const bool in_place = waits || !asynchronous_;
    distributed::run_on_all_ranks(communicator_, [&] { contents_ = staging_.stage(order, layout_, !in_place); });

    results_.assign(communicator_.size(), Json());
    reported_ = false;
    stall_ = seconds_since(begin_);
    state_ = State::kWriting;
    write_begin_ = Clock::now();
    writer_.start([this] { write(); });
    if (in_place) outcomes.push_back(std::move(*finish()));
    return outcomes;
  }

  bool in_flight() const { return state_ != State::kIdle; }

  std::string pending_message() {
    const bool reports = state_ == State::kWriting || (state_ == State::kCommitting && communicator_.rank() == 0);
    if (!reports || reported_ || !writer_.idle()) return {};
    reported_ = true;
    if (state_ == State::kWriting) own_["stall"] = stall_;
    return json_text(own_);
  }

  std::optional<SaveOutcome> handle(const std::vector<std::string>& messages) {
    if (state_ == State::kWriting) {
      for (std::size_t rank = 0; rank < messages.size(); ++rank) {
        if (!messages[rank].empty()) results_.at(rank) = Json::parse(messages[rank]);
      }
      if (std::any_of(results_.begin(), results_.end(), [](const Json& result) { return result.is_null(); }))
        return std::nullopt;
      state_ = State::kCommitting;
      reported_ = false;
      if (communicator_.rank() == 0) writer_.start([this] { commit_or_discard(); });
      return std::nullopt;
    }
    if (state_ != State::kCommitting || messages.at(0).empty()) return std::nullopt;
    const Json committed = Json::parse(messages[0]);
    SaveOutcome outcome;
    outcome.step = attempt_.step;
    outcome.committed = committed.at("committed").get<bool>();
    outcome.error = committed.at("error").get<std::string>();
    outcome.write_seconds = committed.at("write").get<double>();
    // While it is not asynchronous, training stands still until rank 0 says that all is done. Training that waits for
    // one save has ended.
    outcome.stall_seconds = asynchronous_ ? 0 : committed.at("since_begin").get<double>();
    for (const Json& result : results_) {
      outcome.stall_seconds = std::max(outcome.stall_seconds, result.at("stall").get<double>());
      outcome.bytes += result.value("size", uint64_t{0});
    }
    state_ = State::kIdle;
    return outcome;
  }

  std::optional<SaveOutcome> finish() {
    // Each rank calls the collective only when its own work is done: one whose disk hangs is found by the watchdog.
    while (in_flight()) {
      writer_.wait();
      if (auto outcome = handle(communicator_.all_gather_bytes(pending_message()))) return outcome;
    }
    return std::nullopt;
  }

 private:
  enum class State { kIdle, kWriting, kCommitting };

  void lay_out(const std::vector<const NamedTensor*>& order) {
    std::vector<TensorInfo> table = describe(order);
    if (!layout_.head.empty() && same(table, table_)) return;
    std::vector<std::vector<Piece>> shares = share_out(table, communicator_.size());
    layout_ = lay_out_shard(table, shares[communicator_.rank()]);
    table_ = std::move(table);
    bytes_ = 0;
    for (const TensorInfo& tensor : table_) bytes_ += *bytes_of_shape(tensor.dtype, tensor.shape);
  }

  // What follows runs on the writer thread.

  void write() {
    own_ = Json::object();
    try {
      const CheckpointFile file = write_shard(attempt_, communicator_.rank(), communicator_.size(), contents_, bytes_);
      own_ = {{"name", file.name}, {"size", file.size}, {"crc32c", file.crc32c}};
    } catch (const std::exception& error) {
      own_["error"] = error.what();
    }
  }

  void commit_or_discard() {
    Manifest manifest{info_, communicator_.size(), {}, table_};
    std::string error;
    for (std::size_t rank = 0; rank < results_.size(); ++rank) {
      if (results_[rank].count("error") > 0) {
        error +=
            fmt::format("{}rank {}: {}", error.empty() ? "" : "\n", rank, results_[rank]["error"].get<std::string>());
      } else {
        manifest.files.push_back({results_[rank]["name"], results_[rank]["size"], results_[rank]["crc32c"]});
      }
    }
    bool committed = false;
    std::string replaced;
    if (error.empty()) {
      try {
        if (before_commit_) before_commit_();
        replaced = commit(attempt_, manifest);
        committed = true;
      } catch (const std::exception& failure) {
        error = fmt::format("rank 0: {}", failure.what());
      }
    }
    const double write_seconds = seconds_since(write_begin_);
    try {
      if (committed) {
        if (!replaced.empty()) remove_folder(replaced);
        for (const FoundCheckpoint& old : superfluous(folder_, retention_, attempt_.step)) remove_checkpoint(old.path);
      } else {
        error = fmt::format("The checkpoint of step {} was not saved; the older ones are unchanged. {}", attempt_.step,
                            error);
        discard(attempt_);
      }
    } catch (const std::exception& failure) {
      error += fmt::format("{}{}",
                           error.empty() ? "The checkpoint is saved, but older ones could not be removed: "
                                         : "\nIts unfinished files could not be removed: ",
                           failure.what());
    }
    own_ = {
        {"committed", committed}, {"error", error}, {"write", write_seconds}, {"since_begin", seconds_since(begin_)}};
  }

  const std::string folder_;
  const Retention retention_;
  const bool asynchronous_;
  Communicator& communicator_;
  const std::function<void()> before_commit_;

  std::vector<TensorInfo> table_;
  ShardLayout layout_;  // of this rank's share of table_
  uint64_t bytes_ = 0;  // of all tensors
  Staging staging_;

  // The save in flight. The writer has these while it works.
  State state_ = State::kIdle;
  SaveAttempt attempt_;
  CheckpointInfo info_;
  std::vector<std::string_view> contents_;
  std::vector<Json> results_;  // of the ranks; null until a rank has reported
  Json own_;                   // what this rank has to report
  bool reported_ = false;
  double stall_ = 0;
  Clock::time_point begin_, write_begin_;

  Writer writer_;  // the last member: its job ends before anything that it uses is destroyed
};

CheckpointSaver::CheckpointSaver(const std::string& folder, const Retention& retention, bool asynchronous,
                                 Communicator& communicator, std::function<void()> before_commit)
    : implementation_(
          std::make_unique<Implementation>(folder, retention, asynchronous, communicator, std::move(before_commit))) {}

CheckpointSaver::~CheckpointSaver() = default;

void CheckpointSaver::prepare(const std::vector<NamedTensor>& tensors) { implementation_->prepare(tensors); }

std::vector<SaveOutcome> CheckpointSaver::save(const CheckpointInfo& info, const std::vector<NamedTensor>& tensors,
                                               bool waits) {
  return implementation_->save(info, tensors, waits);
}

bool CheckpointSaver::in_flight() const { return implementation_->in_flight(); }

std::string CheckpointSaver::pending_message() { return implementation_->pending_message(); }

std::optional<SaveOutcome> CheckpointSaver::handle(const std::vector<std::string>& messages) {
  return implementation_->handle(messages);
}

std::optional<SaveOutcome> CheckpointSaver::finish() { return implementation_->finish(); }

}  // namespace muster::checkpoints
