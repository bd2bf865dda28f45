#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/run/run_lock.h"
#include "core/run/tensorboard.h"

namespace muster::run {

// The folder a run leaves behind: config.txtpb, environment.json, metrics.jsonl and the same for TensorBoard,
// checkpoints/, weights/{best,last}.safetensors, predictions-{valid,test}.csv, result.json, logs/. Written by one rank,
// which holds its lock.
class RunDirectory {
 public:
  // A new one, whole or not at all: it appears with its first files in it, or, where a prepared one waits, config.txtpb
  // appears there last. Throws Error(kUsage) when there is something else (a run is never overwritten), as RunDirInUse
  // when that is a run, Error(kIo) when it cannot be written. tell, keeps_events: as below.
  RunDirectory(const std::string& path, const std::string& config_text, const nlohmann::json& environment,
               const std::function<void(const std::string&)>& tell = {}, bool keeps_events = true);
  // One that is there, to continue; nothing in it is changed. Throws Error(kUsage) when it is not a run directory, as
  // RunDirInUse when another job holds it. tell: gets a sentence when a lock that was left behind has to be waited for
  // or is taken over. keeps_events: for TensorBoard.
  explicit RunDirectory(const std::string& path, const std::function<void(const std::string&)>& tell = {},
                        bool keeps_events = true);

  // Before the first row, in a directory that was there: removes rows of steps after `step`, which will come again, a
  // torn last one, and the temporary files of writers that were killed. Throws Error(kBadData) when metrics.jsonl
  // holds anything but rows.
  void continue_after(uint64_t step);

  // One row of metrics.jsonl, written at once; its numbers go to TensorBoard too, if events are kept. Numbers that JSON
  // cannot hold (NaN, infinity) become null. "step" never decreases.
  void append_metrics(const nlohmann::json& row);
  // One line of another JSON-lines file, from which nothing is ever removed.
  void append_log(const std::string& name, const nlohmann::json& row);
  // What was appended survives a power failure after this.
  void sync();
  // Writes a file whole or not at all.
  void write(const std::string& name, const std::string& bytes);
  void remove(const std::string& name);
  // environment.json as it is.
  nlohmann::json environment() const;
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  // Throws Error(kIo) when another job has taken the run over. To be called before what matters is written.
  void require_held() { lock_->check(); }

 private:
  void begin_in_prepared(const std::string& config_text, const nlohmann::json& environment);
  void open_metrics();
  // The same at little cost: as of the last renewal.
  void require_not_lost();

  std::string path_;
  std::optional<RunLock> lock_;
  const bool keeps_events_;
  std::optional<EventFile> events_;
  Descriptor metrics_;
};

// What a path is to someone who wants to run there.
enum class RunDirState {
  kNothing,   // there is nothing of that name
  kPrepared,  // a folder that waits for its run: submission.json, and at most job.sbatch, logs/ and what a beginning
              // that was killed has left
  kBegun,     // a run that is not finished
  kFinished,  // a run that is
  kOther,     // something else, not to be touched
};
RunDirState run_dir_state(const std::string& path);

// Throws Error(kUsage), saying what to do, unless `path` is nothing yet or a prepared run directory; as RunDirInUse
// when there is a run.
void require_new_run_directory(const std::string& path);

// Makes `path` a prepared run directory that holds these files ({name, bytes}; submission.json among them), or, where
// it is one or a run already, writes these files there. A new one appears with all of them or not at all. Throws
// Error(kIo).
void prepare_run_directory(const std::string& path, const std::vector<std::pair<std::string, std::string>>& files);

// The weights file that a run began from; empty texts when it began from its model's own initial weights.
struct InitFrom {
  std::string path;
  std::string sha256;
};
// As environment.json of a run directory says; empty when it cannot be read. Throws Error(kBadData) when it says
// something else than text there.
InitFrom recorded_init_from(const std::string& run_directory);

}  // namespace muster::run
