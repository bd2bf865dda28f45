#include "checkpoints/saver.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "base/error.h"
#include "base/files.h"
#include "base/sha256.h"
#include "checkpoints/commit.h"
#include "checkpoints/folders.h"
#include "checkpoints/staging.h"
#include "checkpoints/writer_thread.h"

namespace muster::checkpoints {

using distributed::Communicator;
using Json = nlohmann::json;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::string to_text(const Json& word) { return word.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Names, dtypes and shapes, in the order of the names; never a name twice.
std::vector<TensorInfo> describe(const std::vector<const NamedTensor*>& tensors) {
  std::vector<TensorInfo> table;
  for (const NamedTensor* item : tensors) {
    if (!item->tensor.defined()) throw std::invalid_argument("tensor " + item->name + " is undefined");
    if (item->tensor.layout() != at::kStrided) throw std::invalid_argument("tensor " + item->name + " is sparse");
    if (item->name == "__metadata__") throw std::invalid_argument("a tensor cannot be named __metadata__");
    if (!table.empty() && table.back().name == item->name)
      throw std::invalid_argument("two tensors are named " + item->name);
    safetensors_dtype(item->tensor.scalar_type());
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
    for (const int64_t size : tensor.shape) hash.update(" " + std::to_string(size));
    hash.update("\n");
  }
  hash.update(std::to_string(info.step) + " " + std::to_string(info.epoch) + " " + std::to_string(info.seed) + "\n" +
              info.config + '\0' + info.training_state);
  return hash.hex();
}

}  // namespace

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
    lay_out(in_order(tensors));
    const bool pinned =
        std::any_of(tensors.begin(), tensors.end(), [](const NamedTensor& item) { return item.tensor.is_cuda(); });
    writer_.start([this, size = layout_.data_size, pinned] {
      try {
        staging_.reserve(size, pinned);
      } catch (const std::exception&) {
        // The save that needs the memory will say so.
      }
    });
  }

  std::vector<SaveOutcome> save(const CheckpointInfo& info, const std::vector<NamedTensor>& tensors) {
    const auto begin = Clock::now();
    std::vector<SaveOutcome> outcomes;
    if (auto outcome = finish()) outcomes.push_back(std::move(*outcome));
    writer_.wait();
    begin_ = begin;

    const std::vector<const NamedTensor*> order = in_order(tensors);
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
    distributed::run_on_all_ranks(communicator_, [&] { contents_ = staging_.stage(order, layout_, asynchronous_); });

    results_.assign(communicator_.size(), Json());
    told_ = false;
    stall_ = seconds_since(begin_);
    state_ = State::kWriting;
    write_begin_ = Clock::now();
    writer_.start([this] { write(); });
    if (!asynchronous_) outcomes.push_back(std::move(*finish()));
    return outcomes;
  }

  bool in_flight() const { return state_ != State::kIdle; }

  std::string word() {
    const bool mine_to_tell = state_ == State::kWriting || (state_ == State::kSettling && communicator_.rank() == 0);
    if (!mine_to_tell || told_ || !writer_.idle()) return {};
    told_ = true;
    if (state_ == State::kWriting) own_["stall"] = stall_;
    return to_text(own_);
  }

  std::optional<SaveOutcome> hear(const std::vector<std::string>& words) {
    if (state_ == State::kWriting) {
      for (std::size_t rank = 0; rank < words.size(); ++rank) {
        if (!words[rank].empty()) results_.at(rank) = Json::parse(words[rank]);
      }
      if (std::any_of(results_.begin(), results_.end(), [](const Json& result) { return result.is_null(); }))
        return std::nullopt;
      state_ = State::kSettling;
      told_ = false;
      if (communicator_.rank() == 0) writer_.start([this] { settle(); });
      return std::nullopt;
    }
    if (state_ != State::kSettling || words.at(0).empty()) return std::nullopt;
    const Json settled = Json::parse(words[0]);
    SaveOutcome outcome;
    outcome.step = attempt_.step;
    outcome.committed = settled.at("committed").get<bool>();
    outcome.error = settled.at("error").get<std::string>();
    outcome.write_seconds = settled.at("write").get<double>();
    // While it is not asynchronous, training stands still until rank 0 says that all is done.
    outcome.stall_seconds = asynchronous_ ? 0 : settled.at("since_begin").get<double>();
    for (const Json& result : results_) {
      outcome.stall_seconds = std::max(outcome.stall_seconds, result.at("stall").get<double>());
      outcome.bytes += result.value("size", uint64_t{0});
    }
    state_ = State::kIdle;
    return outcome;
  }

  std::optional<SaveOutcome> finish() {
    // Ranks meet only when their own work is done: a rank whose disk hangs does not come, and is found by the others as
    // one that hangs.
    while (in_flight()) {
      writer_.wait();
      if (auto outcome = hear(communicator_.all_gather_bytes(word()))) return outcome;
    }
    return std::nullopt;
  }

 private:
  enum class State { kIdle, kWriting, kSettling };

  static std::vector<const NamedTensor*> in_order(const std::vector<NamedTensor>& tensors) {
    std::vector<const NamedTensor*> order;
    for (const NamedTensor& item : tensors) order.push_back(&item);
    std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) { return a->name < b->name; });
    return order;
  }

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

  void settle() {
    Manifest manifest{info_, communicator_.size(), {}, table_};
    std::string error;
    for (std::size_t rank = 0; rank < results_.size(); ++rank) {
      if (results_[rank].count("error") > 0) {
        error += (error.empty() ? "rank " : "\nrank ") + std::to_string(rank) + ": " +
                 results_[rank]["error"].get<std::string>();
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
        error = std::string("rank 0: ") + failure.what();
      }
    }
    const double write_seconds = seconds_since(write_begin_);
    try {
      if (committed) {
        if (!replaced.empty()) remove_folder(replaced);
        for (const FoundCheckpoint& old : superfluous(folder_, retention_, attempt_.step)) remove_checkpoint(old.path);
      } else {
        error = "The checkpoint of step " + std::to_string(attempt_.step) +
                " was not saved; the older ones are as they were. " + error;
        discard(attempt_);
      }
    } catch (const std::exception& failure) {
      error += std::string(error.empty() ? "The checkpoint is saved, but older ones could not be removed: "
                                         : "\nWhat was written of it stays: ") +
               failure.what();
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
  std::vector<Json> results_;  // of the ranks; null while one has not told
  Json own_;                   // what this rank has to tell
  bool told_ = false;
  double stall_ = 0;
  Clock::time_point begin_, write_begin_;

  WriterThread writer_;  // the last: its job ends before anything that it uses
};

CheckpointSaver::CheckpointSaver(const std::string& folder, const Retention& retention, bool asynchronous,
                                 Communicator& communicator, std::function<void()> before_commit)
    : implementation_(
          std::make_unique<Implementation>(folder, retention, asynchronous, communicator, std::move(before_commit))) {}

CheckpointSaver::~CheckpointSaver() = default;

void CheckpointSaver::prepare(const std::vector<NamedTensor>& tensors) { implementation_->prepare(tensors); }

std::vector<SaveOutcome> CheckpointSaver::save(const CheckpointInfo& info, const std::vector<NamedTensor>& tensors) {
  return implementation_->save(info, tensors);
}

bool CheckpointSaver::in_flight() const { return implementation_->in_flight(); }

std::string CheckpointSaver::word() { return implementation_->word(); }

std::optional<SaveOutcome> CheckpointSaver::hear(const std::vector<std::string>& words) {
  return implementation_->hear(words);
}

std::optional<SaveOutcome> CheckpointSaver::finish() { return implementation_->finish(); }

}  // namespace muster::checkpoints
