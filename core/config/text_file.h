#pragma once

#include <map>
#include <string>

namespace muster::config {

// The bytes of an experiment file as UTF-8 text without byte order mark. Throws Error(kBadConfig) that says what the
// file is instead: missing (with similar names beside it), a folder, unreadable, empty, too large, binary, another
// encoding.
std::string read_text_file(const std::string& path);

// The same checks for text that has been read already; `path` is for messages.
std::string checked_text(std::string text, const std::string& path);

// The first word after each `key` among the comments at the top, by line number from 1: for "proto-message:", the lines
// "# proto-message: muster.config.Experiment".
std::map<int, std::string> header_values(const std::string& text, const std::string& key);

// Throws Error(kBadConfig) if a `# proto-message:` line among the comments at the top names another message than
// `message`.
void require_proto_message(const std::string& text, const std::string& path, const std::string& message);

}  // namespace muster::config
