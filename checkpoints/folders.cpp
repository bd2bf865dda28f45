#include "checkpoints/folders.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "base/error.h"
#include "base/files.h"

namespace muster::checkpoints {
namespace {

constexpr std::pair<Purpose, const char*> kPrefixes[] = {{Purpose::kWriting, ".tmp-"},
                                                         {Purpose::kRemoving, ".del-step-"},
                                                         {Purpose::kReplaced, ".old-step-"},
                                                         {Purpose::kDamaged, ".bad-step-"}};

std::string digits_of(uint64_t step) { return fmt::format("{:08}", step); }

std::optional<uint64_t> step_of_digits(const std::string& digits) {
  if (digits.size() < 8 || digits.size() > 20 ||
      !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }))
    return std::nullopt;
  uint64_t step = 0;
  for (const char digit : digits) {
    if (__builtin_mul_overflow(step, 10, &step) || __builtin_add_overflow(step, digit - '0', &step))
      return std::nullopt;
  }
  if (digits_of(step) != digits) return std::nullopt;
  return step;
}

}  // namespace

std::string step_name(uint64_t step) { return "step-" + digits_of(step); }

std::optional<uint64_t> step_of_name(const std::string& name) {
  return name.compare(0, 5, "step-") == 0 ? step_of_digits(name.substr(5)) : std::nullopt;
}

std::string hidden_name(Purpose purpose, uint64_t step, const std::string& uuid) {
  for (const auto& [known, prefix] : kPrefixes)
    if (known == purpose) return fmt::format("{}{}-{}", prefix, digits_of(step), uuid);
  throw std::logic_error("no such purpose");
}

std::optional<HiddenName> parse_hidden_name(const std::string& name) {
  for (const auto& [purpose, text] : kPrefixes) {
    const std::string prefix = text;
    const std::size_t dash = name.rfind('-');
    if (name.compare(0, prefix.size(), prefix) != 0 || dash < prefix.size() || name.size() - dash != 33) continue;
    if (name.find_first_not_of("0123456789abcdef", dash + 1) != name.npos) continue;
    if (const auto step = step_of_digits(name.substr(prefix.size(), dash - prefix.size())))
      return HiddenName{purpose, *step};
  }
  return std::nullopt;
}

void require_step(const std::string& path, uint64_t step) {
  const auto named = step_of_name(name_of(path));
  if (!named || *named == step) return;
  throw Error(ExitCode::kBadData,
              fmt::format("{} holds the checkpoint of step {}: it was renamed. Rename it back to {}.", path, step,
                          step_name(step)));
}

}  // namespace muster::checkpoints
