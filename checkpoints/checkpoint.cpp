#include "checkpoints/checkpoint.h"

#include <fmt/format.h>

#include <functional>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "checkpoints/folders.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard_reader.h"
#include "checkpoints/shares.h"

namespace muster::checkpoints {

using distributed::Communicator;
using distributed::run_on_all_ranks;

namespace {

Checkpoint describe(const std::string& path, const Manifest& manifest) {
  Checkpoint checkpoint{path, manifest.info, manifest.world_size, manifest.files, 0};
  for (const CheckpointFile& file : manifest.files) checkpoint.bytes += file.size;
  return checkpoint;
}

Manifest manifest_of(const std::string& path, const std::string& bytes) {
  Manifest manifest = parse_manifest(bytes, fmt::format("{}/{}", path, kManifestName));
  require_step(path, manifest.info.step);
  return manifest;
}

// All files are there, and of the right size.
Manifest complete_manifest(const std::string& path) {
  Manifest manifest = manifest_of(path, read_manifest_bytes(path));
  for (const CheckpointFile& file : manifest.files) look_up(path, file);
  return manifest;
}

// All ranks' `own`; a failure of one is a failure of all.
std::vector<std::string> gather_together(Communicator& communicator, const std::function<std::string()>& own) {
  std::string text;
  run_on_all_ranks(communicator, [&] { text = own(); });
  return communicator.all_gather_bytes(text);
}

}  // namespace

std::vector<FoundCheckpoint> find_checkpoints(const std::string& folder) {
  std::map<uint64_t, std::string, std::greater<>> names;  // by step
  for (const std::string& name : list_folder(folder)) {
    if (const auto step = step_of_name(name)) names[*step] = name;
    // A checkpoint that was being replaced by another one of the same step: it counts until that has the name.
    if (const auto hidden = parse_hidden_name(name); hidden && hidden->purpose == Purpose::kReplaced)
      names.emplace(hidden->step, name);
  }
  std::vector<FoundCheckpoint> found;
  for (const auto& [step, name] : names) found.push_back({folder + "/" + name, step});
  return found;
}

Checkpoint read_manifest(const std::string& path) { return describe(path, complete_manifest(path)); }

Checkpoint verify_checkpoint(const std::string& path, const std::function<void(uint64_t, uint64_t)>& progress) {
  const Manifest manifest = complete_manifest(path);
  const Checkpoint checkpoint = describe(path, manifest);
  uint64_t done = 0;
  const auto report = [&](uint64_t bytes) {
    done += bytes;
    if (progress) progress(done, checkpoint.bytes);
  };
  Coverage coverage(manifest.tensors);
  for (const CheckpointFile& file : manifest.files) {
    ShardReader reader(path, file);
    report(8 + reader.header_json().size());
    for (std::size_t i = 0; i < reader.order().size(); ++i) reader.read(nullptr, report);
    reader.finish();
    coverage.add(reader.path(), reader.header());
  }
  coverage.require_complete(path);
  return checkpoint;
}

LoadedCheckpoint load_checkpoint(const std::string& path, Communicator& communicator) {
  const int rank = communicator.rank(), ranks = communicator.size();
  const auto bytes =
      gather_together(communicator, [&] { return rank == 0 ? read_manifest_bytes(path) : std::string(); });
  Manifest manifest;
  LoadedCheckpoint loaded;
  std::vector<at::Tensor> tensors;
  run_on_all_ranks(communicator, [&] {
    manifest = manifest_of(path, bytes[0]);
    // All sizes first: then the tensors of the manifest take no more memory than the files on the disk.
    for (int i = rank; i < manifest.world_size; i += ranks) look_up(path, manifest.files[i]);
  });
  run_on_all_ranks(communicator, [&] {
    loaded.checkpoint = describe(path, manifest);
    for (const TensorInfo& tensor : manifest.tensors)
      tensors.push_back(at::empty(tensor.shape, at::TensorOptions(tensor.dtype)));
  });
  const auto rows_in = [&](const std::string& name, const SafetensorsHeader::Entry& entry, int64_t first_row) {
    const at::Tensor& whole = tensors[find_tensor(manifest.tensors, name)];
    return whole.dim() == 0 ? whole : whole.narrow(0, first_row, entry.shape[0]);
  };

  Coverage coverage(manifest.tensors);
  for (int first = 0; first < manifest.world_size; first += ranks) {
    const auto headers = gather_together(communicator, [&]() -> std::string {
      if (first + rank >= manifest.world_size) return {};
      ShardReader reader(path, manifest.files[first + rank]);
      Coverage(manifest.tensors).add(reader.path(), reader.header());
      const auto rows = first_rows(reader.header(), reader.path());
      for (const std::string& name : reader.order()) {
        reader.read(rows_in(name, reader.header().tensors.at(name), rows.at(name)).mutable_data_ptr());
      }
      reader.finish();
      return reader.header_json();
    });
    for (int reader = 0; reader < ranks && first + reader < manifest.world_size; ++reader) {
      const CheckpointFile& file = manifest.files[first + reader];
      const std::string name_of_file = path + "/" + file.name;
      const SafetensorsHeader header =
          parse_safetensors_header(headers[reader], file.size - 8 - headers[reader].size(), name_of_file);
      coverage.add(name_of_file, header);
      if (ranks == 1) continue;
      const auto rows = first_rows(header, name_of_file);
      for (const auto& [name, entry] : header.tensors) {
        if (entry.end > entry.begin) communicator.broadcast(rows_in(name, entry, rows.at(name)), reader);
      }
    }
  }
  run_on_all_ranks(communicator, [&] { coverage.require_complete(path); });
  for (std::size_t i = 0; i < tensors.size(); ++i) loaded.tensors.emplace(manifest.tensors[i].name, tensors[i]);
  return loaded;
}

std::optional<LoadedCheckpoint> load_newest_checkpoint(const std::string& folder, Communicator& communicator,
                                                       std::vector<std::string>& damaged) {
  // Only rank 0 lists the folder: on a network file system other ranks may see an older state.
  const auto lists = gather_together(communicator, [&] {
    std::string names;
    if (communicator.rank() == 0)
      for (const FoundCheckpoint& found : find_checkpoints(folder)) names += name_of(found.path) + "\n";
    return names;
  });
  if (lists[0].empty()) return std::nullopt;
  std::string reasons;
  for (std::size_t begin = 0, end = 0; begin < lists[0].size(); begin = end + 1) {
    end = lists[0].find('\n', begin);
    try {
      return load_checkpoint(folder + "/" + lists[0].substr(begin, end - begin), communicator);
    } catch (const SharedError& error) {
      // A checkpoint that cannot be read may be whole: falling back to an older one would lose work without need.
      if (error.code() != ExitCode::kBadData) throw;
      damaged.push_back(error.what());
      reasons += fmt::format("\n{}", error.what());
    }
  }
  throw SharedError(
      ExitCode::kBadData,
      fmt::format(
          "No checkpoint in {} is whole:{}\nIf there is a copy of one elsewhere, put it in its place; otherwise "
          "start the run again in a new folder.",
          folder, reasons));
}

}  // namespace muster::checkpoints
