#pragma once

#include <google/protobuf/text_format.h>

#include <stdexcept>
#include <string>

#include "core/config/experiment.pb.h"
#include "core/config/load.h"
#include "core/models/spec.h"

namespace muster::models {

// defaults.txtpb for the model of `text`, then `text` on top of it.
inline config::Experiment defaults(const std::string& text = "") {
  config::Experiment changes;
  if (!google::protobuf::TextFormat::ParseFromString(text, &changes))
    throw std::runtime_error("not an experiment: " + text);
  config::Experiment experiment = config::default_experiment(models::model_of(changes));
  experiment.MergeFrom(changes);
  return experiment;
}

}  // namespace muster::models
