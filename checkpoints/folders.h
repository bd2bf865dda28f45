#pragma once

#include <cstdint>
#include <optional>
#include <string>

// What the names of checkpoint folders mean.
namespace muster::checkpoints {

// step-00000120
std::string step_name(uint64_t step);
// The step of a name that step_name() gives; nothing for others.
std::optional<uint64_t> step_of_name(const std::string& name);

// Why a folder is hidden.
enum class Purpose {
  kWriting,   // .tmp-<step>-<uuid>: being written
  kRemoving,  // .del-step-<step>-<uuid>: being removed
  kReplaced,  // .old-step-<step>-<uuid>: whole, while another takes its place; the checkpoint of its step until then
  kDamaged,   // .bad-step-<step>-<uuid>: set aside for inspection
};
struct HiddenName {
  Purpose purpose;
  uint64_t step = 0;
};
std::string hidden_name(Purpose purpose, uint64_t step, const std::string& uuid);
std::optional<HiddenName> parse_hidden_name(const std::string& name);

// Throws Error(kBadData) when the step in the folder's name is not the one of its manifest: someone renamed it.
void require_step(const std::string& path, uint64_t step);

}  // namespace muster::checkpoints
