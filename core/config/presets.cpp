#include "core/config/presets.h"

#include <fmt/format.h>

#include <map>
#include <string_view>

#include "base/error.h"
#include "base/problems.h"
#include "core/config/parse.h"
#include "core/config/suggest.h"

namespace muster::embedded {
extern const std::string_view defaults_txtpb;
// By name: every file of core/config/presets/.
extern const std::map<std::string, std::string_view>& presets();
}  // namespace muster::embedded

namespace muster::config {

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, text] : embedded::presets()) names.push_back(name);
  return names;
}

std::string preset_text(const std::string& name) {
  const auto found = embedded::presets().find(name);
  if (found != embedded::presets().end()) return std::string(found->second);
  const std::vector<std::string> near = nearest(name, preset_names());
  throw Error(ExitCode::kBadConfig,
              fmt::format("there is no preset \"{}\"; {}Presets: {}", name,
                          near.empty() ? "" : fmt::format("did you mean {}? ", either(near)), either(preset_names())));
}

Experiment default_experiment(const std::string& model) {
  static const Parsed defaults = [] {
    Problems problems("defaults.txtpb");
    Parsed parsed = parse_text(std::string(embedded::defaults_txtpb), problems);
    problems.throw_if_any(ExitCode::kInternal);
    return parsed;
  }();
  Experiment experiment = defaults.experiment;
  if (const auto block = defaults.models.find(model); block != defaults.models.end())
    experiment.MergeFrom(block->second);
  return experiment;
}

}  // namespace muster::config
