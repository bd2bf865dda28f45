#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/batch/reader.h"
#include "core/config/load.h"
#include "core/data/dataset.h"
#include "core/data/scan.h"
#include "core/data/split.h"
#include "core/models/make_model.h"
#include "distributed/communicator.h"

namespace muster::training {

// The dataset that the last run of this process has opened, for runs that follow it in the same process: opening,
// looking through and hashing it cost more than a short run.
struct DatasetCache {
  std::string key;  // what was opened
  std::shared_ptr<const data::Dataset> dataset;
  std::vector<std::vector<int64_t>> finite;  // modalities that were found finite together
  std::string sha256;                        // empty: not known yet
};

// The data of an experiment, opened and checked against it.
struct DataSource {
  std::shared_ptr<const data::Dataset> dataset;
  std::vector<int64_t> modalities;  // positions in the dataset, in the experiment's order
  models::DataShape shape;
  std::vector<batch::RowLimits> limits;   // per modality, by its encoder
  std::vector<data::IdLimits> id_limits;  // likewise
  std::vector<int64_t> usable;            // samples the model can use, in dataset order
  int64_t dropped = 0;                    // the others
  std::string dropped_ids;                // the first ten of them

  const data::DatasetIndex& index() const { return dataset->index(); }
};

// Opens the experiment's data for training, or takes it from `cache`. Every rank opens its own. Throws one
// Error(kBadConfig) that names everything in which the experiment does not fit the data (modalities, task, classes,
// metric, encoders, what the model says of their widths), each beginning with the field's path and a colon;
// Error(kBadData) when the file is not valid or a sample lacks a modality that the model needs and
// data.missing_modality is ERROR.
DataSource open_training_data(const config::Experiment& experiment, DatasetCache* cache = nullptr);
// The same for a model that is trained already: if `path` is not empty, that file in place of the experiment's, and
// without what the model says of widths. They must be those of its weights, which is for run::read_weights to say.
DataSource open_data(const config::Experiment& experiment, const std::string& path, bool labels_required);

// Place of the modality's block in experiment.encoders(), or -1.
int find_encoder(const config::Experiment& experiment, const std::string& modality);

// Why the data's modality and the experiment's encoder for it (place in experiment.encoders(); -1: it has none) do not
// go together, beginning with the field's path and a colon; "" where they do. takes: nullptr where there is none.
// `source`: of the data, for the message.
std::string encoder_problem(const data::Modality& modality, int encoder, const models::Encoder* takes,
                            const std::string& source);

// The experiment's splits, without dropped samples. Throws as data::make_split.
data::Split split_data(const config::Experiment& experiment, const DataSource& source, bool for_training);

// Throws Error(kBadData) for a modality that none of the training samples has: its weights would stay random, and
// evaluation might use them.
void require_training_modalities(const DataSource& source, const std::vector<int64_t>& train);

// Throws Error(kBadConfig) that says what to set when `split`, of that experiment and data, has no validation samples.
void require_validation_split(const config::Experiment& experiment, const DataSource& source, const data::Split& split);

// Looks through all values of the used modalities for NaN, infinities and ids that are none, each rank at its share.
// Throws Error(kBadData) on every rank. `progress` is called now and then with how many of its samples this rank has
// looked at. Collective.
void require_finite_features(const DataSource& source, distributed::Communicator& communicator,
                             const std::function<void(int64_t done, int64_t total)>& progress = {});

// Mean and standard deviation per feature over the frames of `samples`, each rank summing its share;
// batch::no_moments() for waveforms and tokens. The result has the
// same bits on every rank and for any number of ranks. Collective.
std::vector<batch::FeatureMoments> fit_moments(const DataSource& source, const std::vector<int64_t>& samples,
                                               distributed::Communicator& communicator);

}  // namespace muster::training
