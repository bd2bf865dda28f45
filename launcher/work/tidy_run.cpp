#include "launcher/work/tidy_run.h"

#include <filesystem>

namespace muster::launcher {

void tidy_run(const std::string& run, const std::set<std::string>& kept, bool keep_weights) {
  std::error_code ignored;  // what cannot be removed only takes room
  for (const auto& entry : std::filesystem::directory_iterator(run, ignored)) {
    const std::string name = entry.path().filename().string();
    if (kept.count(name)) continue;
    if (name == "weights" && keep_weights)
      std::filesystem::remove(entry.path() / "last.safetensors", ignored);
    else
      std::filesystem::remove_all(entry.path(), ignored);
  }
}

}  // namespace muster::launcher
