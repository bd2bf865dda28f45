#pragma once

#include <google/protobuf/text_format.h>

#include <stdexcept>
#include <string>

#include "core/config/experiment.pb.h"
#include "core/config/presets.h"

namespace muster::models {

// defaults.txtpb, then `text` on top of it.
inline config::Experiment defaults(const std::string& text = "") {
  config::Experiment experiment, changes;
  using google::protobuf::TextFormat;
  if (!TextFormat::ParseFromString(std::string(config::defaults_text()), &experiment) ||
      !TextFormat::ParseFromString(text, &changes))
    throw std::runtime_error("not an experiment: " + text);
  experiment.MergeFrom(changes);
  return experiment;
}

}  // namespace muster::models
