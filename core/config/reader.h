#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config/outline.h"
#include "core/config/parse.h"

namespace muster::config {

// Gives statements their meaning by the schema: fills a message, and records what it could not take and where each
// value came from.
class StatementReader {
 public:
  // `place` names a line of the text the statements come from, as where() does.
  StatementReader(Parsed& parsed, Problems& problems, std::function<std::string(int line)> place)
      : parsed_(parsed), problems_(problems), place_(std::move(place)) {}

  // Fills `message`, whose dotted path is `prefix`.
  void read(const std::vector<Statement>& statements, google::protobuf::Message& message, const std::string& prefix);

 private:
  using Field = google::protobuf::FieldDescriptor;
  void read_block(const Statement& statement, google::protobuf::Message& message, const Field& field,
                  const std::string& path);
  void read_values(const Statement& statement, google::protobuf::Message& message, const Field& field,
                   const std::string& path);

  Parsed& parsed_;
  Problems& problems_;
  std::function<std::string(int)> place_;
};

}  // namespace muster::config
