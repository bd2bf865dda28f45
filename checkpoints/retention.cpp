#include "checkpoints/retention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/files.h"
#include "checkpoints/folders.h"

namespace muster::checkpoints {
namespace {

// Takes a checkpoint's name from it for good. Returns the hidden one.
std::string hide(const std::string& path, Purpose purpose) {
  auto step = step_of_name(name_of(path));
  if (const auto hidden = parse_hidden_name(name_of(path))) step = hidden->step;
  if (!step)
    throw Error(ExitCode::kIo, fmt::format("{} does not have the name of a checkpoint: it is not removed.", path));
  const std::string folder = parent_of(path), name = folder + "/" + hidden_name(purpose, *step, make_uuid());
  rename_folder(path, name);
  sync_folder(folder);
  return name;
}

}  // namespace

std::vector<FoundCheckpoint> superfluous(const std::string& folder, const Retention& retention, uint64_t newest) {
  std::vector<Checkpoint> whole;  // newest first
  for (const FoundCheckpoint& found : find_checkpoints(folder)) {
    if (found.step > newest) continue;
    try {
      whole.push_back(read_manifest(found.path));
    } catch (const Error&) {  // stays
    }
  }
  std::set<std::string> kept;
  for (std::size_t i = 0; i < whole.size() && i < std::max<uint32_t>(1, retention.keep_last); ++i)
    kept.insert(whole[i].path);
  for (const Checkpoint& each : whole)
    if (retention.keep_every > 0 && each.info.step % retention.keep_every == 0) kept.insert(each.path);
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
  // The name goes first: after a power failure there must not be a checkpoint of that name without its files.
  remove_folder(hide(path, Purpose::kRemoving));
}

void set_aside(const std::string& path) { hide(path, Purpose::kDamaged); }

int sweep_leftovers(const std::string& folder) {
  for (const FoundCheckpoint& each : find_checkpoints(folder)) {
    if (!parse_hidden_name(name_of(each.path))) continue;
    // An unfinished replacement: the previous checkpoint gets its name back.
    rename_folder(each.path, folder + "/" + step_name(each.step));
    sync_folder(folder);
  }
  int removed = 0;
  for (const std::string& name : list_folder(folder)) {
    const auto hidden = parse_hidden_name(name);
    if (!hidden || hidden->purpose == Purpose::kDamaged) continue;
    remove_folder(folder + "/" + name);
    ++removed;
  }
  return removed;
}

}  // namespace muster::checkpoints
