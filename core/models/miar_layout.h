#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "core/batch/ragged.h"

namespace muster::models {

// Where MIAR's rows lie for one batch. Stream k < M is a modality: per sample its token, then its frames. Stream M is
// "joint": one token per sample. `all` means the streams' rows one after another.
struct MiarLayout {
  struct Stream {
    std::vector<int64_t> offsets;          // [samples + 1] into the stream's rows
    at::Tensor token_first;                // modality: maps [tokens of all samples ; frames] to the stream's rows
    at::Tensor token_rows;                 // [samples]: each sample's token within the stream
    at::Tensor context_rows;               // into `all`: what the sample's queries attend to, sample by sample
    std::vector<int64_t> context_offsets;  // [samples + 1] into context_rows
    at::Tensor has_context;                // [samples] bool; undefined when every sample has some
  };
  std::vector<Stream> streams;
  std::vector<int64_t> one_row_each;  // offsets 0, 1, ... samples

  // Index tensors lie where the frames are.
  explicit MiarLayout(const std::vector<batch::Ragged>& modalities);
};

}  // namespace muster::models
