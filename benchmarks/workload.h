#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/batch/reader.h"
#include "core/models/model.h"
#include "core/optim/adamw.h"
#include "core/training/step.h"

namespace muster::benchmarks {

// A model and random data of the shapes that its field trains on, in memory: what one training step costs, without
// files.
struct Workload {
  std::string name;
  std::unique_ptr<data::Dataset> dataset;
  std::unique_ptr<batch::BatchReader> reader;
  std::unique_ptr<models::Model> model;
  std::unique_ptr<optim::AdamW> optimizer;
  std::vector<int64_t> samples;  // of the one global batch
};

// "foal_net": IEMOCAP with WavLM-large and CLIP-large features (1024 and 768 wide; 50 to 299 and 30 to 180 frames).
// "miar_aligned": MOSI, 768, 5 and 20 wide, the same 5 to 50 frames in all. "miar_unaligned": text 5 to 50, audio to
// 375, vision to 500 frames. Defaults of the experiment file, all losses and dropout on. Throws std::invalid_argument
// for another name.
Workload make_workload(const std::string& name, int64_t batch_size);

// One whole optimizer step: forward, backward, sum over ranks, AdamW. Collective.
void train_step(Workload& workload, training::Step& step, uint32_t number);

}  // namespace muster::benchmarks
