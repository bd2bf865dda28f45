#include "core/config/presets.h"

#include <map>

#include "core/config/suggest.h"
#include "base/error.h"

namespace muster::embedded {
extern const std::string_view defaults_txtpb;
extern const std::string_view preset_foal_net_official;
extern const std::string_view preset_foal_net_recommended;
extern const std::string_view preset_miar_recommended;
}  // namespace muster::embedded

namespace muster::config {

namespace {

const std::map<std::string, std::string_view>& presets() {
  static const std::map<std::string, std::string_view> all = {
      {"foal_net_official", embedded::preset_foal_net_official},
      {"foal_net_recommended", embedded::preset_foal_net_recommended},
      {"miar_recommended", embedded::preset_miar_recommended},
  };
  return all;
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, text] : presets()) names.push_back(name);
  return names;
}

std::string preset_text(const std::string& name) {
  const auto found = presets().find(name);
  if (found != presets().end()) return std::string(found->second);
  const std::vector<std::string> near = nearest(name, preset_names());
  throw Error(ExitCode::kBadConfig,
                           "there is no preset \"" + name + "\"; " +
                               (near.empty() ? "" : "did you mean " + either(near) + "? ") +
                               "Presets: " + either(preset_names()));
}

std::string_view defaults_text() { return embedded::defaults_txtpb; }

}  // namespace muster::config
