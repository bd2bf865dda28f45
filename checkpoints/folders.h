#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// The folders of checkpoints: what their names mean, and the few operations on them.
namespace muster::checkpoints {

// step-00000120
std::string step_name(uint64_t step);
// The step of a name that step_name() gives; nothing for others.
std::optional<uint64_t> step_of_name(const std::string& name);

// Why a folder is hidden.
enum class Purpose {
  kWriting,   // .tmp-<step>-<uuid>: being written
  kRemoving,  // .del-step-<step>-<uuid>: being removed
  kReplaced,  // .old-step-<step>-<uuid>: whole, while another takes its place; the one of its step until that is done
  kDamaged,   // .bad-step-<step>-<uuid>: set aside for a person to look at
};
struct HiddenName {
  Purpose purpose;
  uint64_t step = 0;
};
std::string hidden_name(Purpose purpose, uint64_t step, const std::string& uuid);
std::optional<HiddenName> parse_hidden_name(const std::string& name);

// 32 hexadecimal digits, from the system's randomness.
std::string make_uuid();

// Throws Error(kBadData) when the folder's own name says another step than its manifest: someone renamed it.
void require_step(const std::string& path, uint64_t step);

// All of these throw Error(kIo), naming what.

// Names in a folder but . and .., sorted; none when it does not exist.
std::vector<std::string> list_folder(const std::string& folder);
// With its parents; those that are there already are fine. The entry of each new one is flushed to the device.
void make_folders(const std::string& folder);
void rename_folder(const std::string& from, const std::string& to);
// With the files in it, but not with folders in it. One that does not exist is fine.
void remove_folder(const std::string& folder);

std::string parent_of(const std::string& path);

}  // namespace muster::checkpoints
