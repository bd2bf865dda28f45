#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/config/experiment.pb.h"
#include "core/models/encoders/encoder.h"
#include "core/run/progress.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "distributed/communicator.h"

// Features of all samples of a dataset, computed once: `muster data encode` and the frozen encoders of a run.
namespace muster::training {

// What is encoded by what. All that it refers to must outlive it.
struct Extraction {
  const DataSource& source;
  const std::vector<std::unique_ptr<models::Encoder>>& encoders;  // per used modality; nullptr: it is not encoded
  const models::Parameters& parameters;                           // with those of all encoders, on the device
  const Compute& compute;
  std::string key;            // extraction_key()
  std::string folder;         // where finished pieces wait
  std::string run_directory;  // of the run whose frozen encoders these are; empty: of none
};

// SHA-256 of all that the features depend on: the data's hash, the encoders' descriptions and weights, what is taken of
// each sample and of the encoder, and how it is computed. experiment.encoders(): those that encode.
std::string extraction_key(const config::Experiment& experiment, const std::string& data_sha256,
                           const std::vector<std::unique_ptr<models::Encoder>>& encoders,
                           const models::Parameters& parameters);

struct Extracted {
  int64_t samples = 0;     // of which there are features now
  int64_t found = 0;       // of them, encoded by an earlier call that was interrupted
  std::string stopped_by;  // what asked for a stop; empty: all samples are done
};

// Runs the encoders without dropout over all samples, in pieces of a few of them that do not depend on the number of
// ranks, each rank at a share. Finished pieces of an earlier call are taken as they are. stop: asked before each piece
// on every rank; a text that is not empty names what asks to stop, which all ranks do soon. Throws Error(kUsage) when
// the folder holds pieces of something else, or what is no piece (kIo where it is a run's, which has no other one);
// Error(kIo). A damaged piece is encoded again. Collective.
Extracted extract(const Extraction& extraction, distributed::Communicator& communicator, run::Progress& progress,
                  const std::function<std::string()>& stop = {});

// The same refusals, but for pieces of something else, before any work is done; a folder that is not there is fine.
void require_own_pieces(const std::string& folder, const std::string& run_directory);

// Writes a dataset from the finished pieces: the source's, with features in place of what was encoded; encoded_only:
// without its other modalities. On one rank. Throws Error(kBadData) for a damaged piece, Error(kIo).
void write_extracted(const Extraction& extraction, const std::string& path, bool encoded_only);

// Removes the pieces, when nothing needs them any more. What cannot be removed stays.
void remove_pieces(const Extraction& extraction);

}  // namespace muster::training
