#include "checkpoints/retention.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/files.h"
#include "checkpoints/folders.h"

namespace muster::checkpoints {

std::vector<FoundCheckpoint> superfluous(const std::string& folder, const Retention& retention, uint64_t newest) {
  std::vector<Checkpoint> whole;  // newest first
  for (const FoundCheckpoint& found : find_checkpoints(folder)) {
    if (found.step > newest) continue;
    try {
      whole.push_back(read_manifest(found.path));
    } catch (const Error&) {
    }
  }
  std::set<std::string> kept;
  for (std::size_t i = 0; i < whole.size() && i < std::max<uint32_t>(1, retention.keep_last); ++i)
    kept.insert(whole[i].path);
  if (retention.keep_every > 0) {
    for (const Checkpoint& each : whole) {
      if (each.info.step % retention.keep_every == 0) kept.insert(each.path);
    }
  }
  // Scores by another metric, from before the experiment was changed, cannot be compared with the current ones.
  std::vector<const Checkpoint*> scored;
  for (const Checkpoint& each : whole) {
    const Score& score = each.info.score;
    if (!score.name.empty() && !std::isnan(score.value) && (scored.empty() || scored[0]->info.score.name == score.name))
      scored.push_back(&each);
  }
  const bool higher_is_better = scored.empty() || scored[0]->info.score.higher_is_better;
  std::reverse(scored.begin(), scored.end());  // at a tie the earlier one, as for the run's best weights
  std::stable_sort(scored.begin(), scored.end(), [&](const Checkpoint* a, const Checkpoint* b) {
    return higher_is_better ? a->info.score.value > b->info.score.value : a->info.score.value < b->info.score.value;
  });
  for (std::size_t i = 0; i < scored.size() && i < retention.keep_best; ++i) kept.insert(scored[i]->path);

  std::vector<FoundCheckpoint> rest;
  for (auto each = whole.rbegin(); each != whole.rend(); ++each) {
    if (kept.count(each->path) == 0) rest.push_back({each->path, each->info.step});
  }
  return rest;
}

void remove_checkpoint(const std::string& path) {
  std::string name = path;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  name = name.substr(name.rfind('/') + 1);
  auto step = step_of_name(name);
  if (const auto hidden = parse_hidden_name(name)) step = hidden->step;
  if (!step) throw Error(ExitCode::kIo, path + " does not have the name of a checkpoint: it is not removed.");
  const std::string folder = parent_of(path),
                    hidden = folder + "/" + hidden_name(Purpose::kRemoving, *step, make_uuid());
  rename_folder(path, hidden);
  // Before the first file is removed: after a power failure there must not be a checkpoint of that name without it.
  sync_folder(folder);
  remove_folder(hidden);
}

void set_aside(const std::string& path) {
  const auto step = step_of_name(path.substr(path.rfind('/') + 1));
  if (!step) throw Error(ExitCode::kIo, path + " does not have the name of a checkpoint: it is not removed.");
  rename_folder(path, parent_of(path) + "/" + hidden_name(Purpose::kDamaged, *step, make_uuid()));
  sync_folder(parent_of(path));
}

int sweep_leftovers(const std::string& folder) {
  int removed = 0;
  const std::vector<FoundCheckpoint> found = find_checkpoints(folder);
  for (const FoundCheckpoint& each : found) {
    // An unfinished replacement: the previous checkpoint gets its name back.
    if (parse_hidden_name(each.path.substr(folder.size() + 1))) {
      rename_folder(each.path, folder + "/" + step_name(each.step));
      sync_folder(folder);
    }
  }
  for (const std::string& name : list_folder(folder)) {
    const auto hidden = parse_hidden_name(name);
    if (!hidden || hidden->purpose == Purpose::kDamaged) continue;
    remove_folder(folder + "/" + name);
    ++removed;
  }
  return removed;
}

}  // namespace muster::checkpoints
