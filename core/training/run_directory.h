#pragma once

#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace muster::training {

// The folder a run leaves behind: config.txtpb, environment.json, metrics.jsonl, weights/{best,last}.safetensors,
// predictions-{valid,test}.csv, result.json. Written by one rank.
class RunDirectory {
 public:
  // The folder appears with its first files in it, or not at all. Throws Error(kUsage) when it exists (a run is never overwritten),
  // Error(kIo) when it cannot be written.
  RunDirectory(const std::string& path, const std::string& config_text, const nlohmann::json& environment);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  // One row of metrics.jsonl, flushed at once. Numbers that JSON cannot hold (NaN, infinity) become null.
  void append_metrics(const nlohmann::json& row);
  // Writes a file whole or not at all.
  void write(const std::string& name, const std::string& bytes);
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
  std::FILE* metrics_ = nullptr;
};

// Throws Error(kUsage), saying what to do, when `path` exists already.
void require_new_run_directory(const std::string& path);

}  // namespace muster::training
