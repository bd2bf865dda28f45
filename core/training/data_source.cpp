#include "core/training/data_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/problems.h"
#include "base/text.h"
#include "core/config/fields.h"
#include "core/data/container.h"
#include "core/data/scan.h"
#include "core/data/synthetic.h"
#include "core/metrics/metrics.h"

namespace muster::training {
namespace {

std::unique_ptr<data::Dataset> open_dataset(const config::Data& config, const std::string& path, bool labels_required) {
  if (path.empty() && config.has_synthetic()) {
    const auto& synthetic = config.synthetic();
    const auto kind = synthetic.kind() == config::Synthetic::REGRESSION ? data::SyntheticKind::kRegression
                                                                        : data::SyntheticKind::kClassification;
    data::SyntheticSignal signal;
    signal.without.insert(synthetic.without_signal().begin(), synthetic.without_signal().end());
    signal.agreement = synthetic.agreement();
    signal.text_encoders = synthetic.text_encoders();
    signal.raw = synthetic.raw();
    return data::make_synthetic(kind, synthetic.samples(), synthetic.noise(), synthetic.seed(), signal);
  }
  return data::open_container(path.empty() ? config.path() : path, {config.target(), labels_required});
}

std::string quoted_list(const std::vector<std::string>& names) {
  return names.empty() ? "" : fmt::format("\"{}\"", fmt::join(names, "\", \""));
}

// Those of the used modalities that the data has.
std::vector<std::string> choose_modalities(const config::Experiment& experiment, const data::Dataset& dataset,
                                           Problems& problems) {
  const auto& index = dataset.index();
  const models::ModelSpec& model = models::spec_of(experiment);
  const models::ModalityPolicy& policy = model.modalities;
  std::vector<std::string> present;
  for (const auto& modality : index.modalities) present.push_back(modality.name);
  std::vector<std::string> chosen(experiment.data().modalities().begin(), experiment.data().modalities().end());
  if (chosen.empty())
    for (const auto& name : policy.defaults)
      if (policy.fewest == policy.most || index.find_modality(name) >= 0) chosen.push_back(name);
  if (chosen.size() < policy.fewest)
    problems.add(fmt::format("data.modalities: {} needs at least {}; {} has {}: list those to use", model.title,
                             plural(static_cast<int64_t>(policy.fewest), "modality"), dataset.source(),
                             quoted_list(present)));
  std::vector<std::string> missing;
  const auto is_missing = [&](const std::string& name) { return index.find_modality(name) < 0; };
  std::copy_if(chosen.begin(), chosen.end(), std::back_inserter(missing), is_missing);
  chosen.erase(std::remove_if(chosen.begin(), chosen.end(), is_missing), chosen.end());
  if (!missing.empty())
    problems.add(fmt::format("data.modalities: {} has no modality {}; it has {}", dataset.source(),
                             quoted_list(missing), quoted_list(present)));
  return chosen;
}

// Encoders belong to modalities that are used and raw, and raw ones need one. encoders: per used modality; empty: not
// opened yet. Whether all is well.
bool check_encoders(const config::Experiment& experiment, const DataSource& source,
                    const std::vector<std::unique_ptr<models::Encoder>>& encoders, Problems& problems) {
  bool good = true;
  const auto add = [&](const std::string& problem) {
    good = false;
    problems.add(problem);
  };
  for (size_t i = 0; i < source.modalities.size(); ++i) {
    const auto& modality = source.index().modalities[static_cast<size_t>(source.modalities[i])];
    const auto problem = encoder_problem(modality, find_encoder(experiment, modality.name),
                                         encoders.empty() ? nullptr : encoders[i].get(), source.dataset->source());
    if (!problem.empty()) add(problem);
  }
  const auto& used = source.shape.modalities;
  for (int i = 0; i < experiment.encoders_size(); ++i)
    if (const std::string& name = experiment.encoders(i).modality();
        std::find(used.begin(), used.end(), name) == used.end())
      add(fmt::format("encoders[{}].modality: \"{}\" is not among the modalities that are used: {}", i, name,
                      quoted_list(used)));
  return good;
}

batch::RowLimits limits_of(const config::Experiment& experiment, const data::Modality& modality,
                           const models::Encoder* encoder) {
  if (encoder == nullptr) return {};
  const config::Encoder& config = experiment.encoders(find_encoder(experiment, modality.name));
  if (modality.kind == data::ModalityKind::kTokens) return {config.max_tokens(), encoder->fewest_rows()};
  const double rows = config.max_seconds() * static_cast<double>(modality.sample_rate);
  return {rows > 0 ? std::max<int64_t>(1, static_cast<int64_t>(std::min(rows, 1e15))) : 0, encoder->fewest_rows()};
}

// The field `classes` of the model's block; 0 where it has none.
int64_t classes_of(const config::Experiment& experiment, const std::string& model) {
  const auto at = config::find_field(experiment, model + ".classes");
  return at.field == nullptr ? 0 : at.message->GetReflection()->GetUInt32(*at.message, at.field);
}

int64_t choose_outputs(const config::Experiment& experiment, const data::Dataset& dataset, Problems& problems) {
  const auto& index = dataset.index();
  const models::ModelSpec& model = models::spec_of(experiment);
  const bool regression = index.task == data::Task::kRegression;
  if (!model.learns(index.task)) {
    std::vector<std::string> others;
    for (const auto* other : models::all_models())
      if (other->learns(index.task)) others.push_back(other->name);
    problems.add(fmt::format("{}: it {}, but {} is for {}; use {}, or choose {} with data.target", model.name,
                             regression ? "classifies" : "does regression", dataset.source(), name_of(index.task),
                             config::either(others), regression ? "class labels" : "a number"));
  }
  if (index.task != data::Task::kClassification && experiment.training().sampling() == config::Training::CLASS_BALANCED)
    problems.add(fmt::format("training.sampling: CLASS_BALANCED needs {}, but {} is for {}; use SHUFFLE",
                             regression ? "classes" : "one class for each sample", dataset.source(),
                             name_of(index.task)));
  if (regression) return 1;
  const int64_t in_file = static_cast<int64_t>(index.class_names.size());
  const int64_t wanted = classes_of(experiment, model.name);
  if (wanted != 0 && wanted != in_file)
    problems.add(
        fmt::format("{0}.classes: it is {1}, but {2} has {3} classes: {4}; leave the field out or set it to {3}",
                    model.name, wanted, dataset.source(), in_file, quoted_list(index.class_names)));
  return in_file;
}

void check_metric(const config::Experiment& experiment, const data::DatasetIndex& index, bool for_training,
                  Problems& problems) {
  const std::string& name = experiment.evaluation().select_by();
  const auto names = metrics::selectable_names(index.task);
  if (name.empty()) return;
  if (std::find(names.begin(), names.end(), name) != names.end()) {
    if (for_training && metrics::is_of_some_data(name) &&
        std::isnan(metrics::metric_value(metrics::regression_metrics(index.labels, index.labels), name)))
      problems.add(
          fmt::format("evaluation.select_by: {} is not defined for these labels (docs/metrics.md); choose "
                      "another metric",
                      name));
    return;
  }
  problems.add(fmt::format("evaluation.select_by: \"{}\" is not a metric of this data's task; use one of {}", name,
                           quoted_list(names)));
}

// Rows of a sample that an encoder cannot take. A sample that is too short has none of the modality's frames.
void check_lengths(const config::Experiment& experiment, const DataSource& source,
                   const std::vector<std::unique_ptr<models::Encoder>>& encoders) {
  const auto& index = source.index();
  for (size_t m = 0; m < encoders.size(); ++m) {
    if (!encoders[m]) continue;
    const auto& modality = index.modalities[source.modalities[m]];
    const bool tokens = modality.kind == data::ModalityKind::kTokens;
    const char* const unit = tokens ? "token" : "value";
    std::vector<std::string> short_ones, long_ones;
    for (int64_t sample = 0; sample < index.size(); ++sample) {
      const int64_t stored = modality.length(sample);
      const int64_t rows = source.limits[m].of(stored);
      if (stored > 0 && rows == 0) short_ones.push_back(index.ids[sample]);
      if (rows > encoders[m]->most_rows()) long_ones.push_back(index.ids[sample]);
    }
    const int place = find_encoder(experiment, modality.name);
    if (source.limits[m].most > 0 && source.limits[m].most < encoders[m]->fewest_rows())
      throw Error(ExitCode::kBadConfig,
                  fmt::format("encoders[{}].{}: leaves {} of each sample, but this encoder needs at least {}", place,
                              tokens ? "max_tokens" : "max_seconds", plural(source.limits[m].most, unit),
                              encoders[m]->fewest_rows()));
    if (!long_ones.empty())
      throw Error(ExitCode::kBadConfig,
                  fmt::format("encoders[{0}].{1}: this encoder takes at most {2} of a sample, and these have more in "
                              "{3}: {4}; set encoders[{0}].{1} to cut them",
                              place, tokens ? "max_tokens" : "max_seconds", plural(encoders[m]->most_rows(), unit),
                              modality.name, join_first(long_ones, 10)));
    if (!short_ones.empty() && experiment.data().missing_modality() != config::Data::DROP)
      throw Error(ExitCode::kBadData,
                  fmt::format("{}: the encoder of {} needs at least {}, and these samples have fewer: {}; set "
                              "data.missing_modality: DROP to treat them as samples without {}",
                              source.dataset->source(), modality.name, plural(encoders[m]->fewest_rows(), unit),
                              join_first(short_ones, 10), modality.name));
  }
}

void find_usable(const config::Experiment& experiment, DataSource& source) {
  const auto& index = source.index();
  const models::ModelSpec& model = models::spec_of(experiment);
  const bool needs_all = model.modalities.every_sample_needs_all;
  const size_t needed = needs_all ? source.modalities.size() : 1;
  std::vector<std::string> lacking;
  for (int64_t sample = 0; sample < index.size(); ++sample) {
    size_t present = 0;
    for (size_t m = 0; m < source.modalities.size(); ++m)
      present += source.limits[m].of(index.modalities[source.modalities[m]].length(sample)) > 0;
    if (present >= needed)
      source.usable.push_back(sample);
    else
      lacking.push_back(index.ids[sample]);
  }
  source.dropped = static_cast<int64_t>(lacking.size());
  source.dropped_ids = join_first(lacking, 10);
  if (source.dropped > 0 && experiment.data().missing_modality() != config::Data::DROP)
    throw Error(ExitCode::kBadData,
                fmt::format("{}: {}, which these samples lack: {}; set data.missing_modality: DROP to leave them out",
                            source.dataset->source(),
                            needs_all ? fmt::format("{} needs every modality", model.title)
                                      : "a sample needs at least one of the used modalities",
                            source.dropped_ids));
  if (source.usable.empty())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: no sample has the modalities that the model needs", source.dataset->source()));
}

void check_augment(const config::Experiment& experiment, const DataSource& source, Problems& problems) {
  for (const std::string& name : experiment.data().augment().modalities())
    if (std::find(source.shape.modalities.begin(), source.shape.modalities.end(), name) ==
        source.shape.modalities.end())
      problems.add(fmt::format("data.augment.modalities: \"{}\" is not used; used are {}", name,
                               quoted_list(source.shape.modalities)));
}

DataSource open_source(const config::Experiment& experiment, const std::string& path, bool labels_required,
                       bool for_training, DatasetCache* cache) {
  DataSource source;
  const auto& data = experiment.data();
  const std::string key = fmt::format("{}|{}|{}|{}|{}", path, data.path(), data.synthetic().SerializeAsString(),
                                      data.target(), labels_required);
  const bool cached = cache && cache->key == key;
  // Never two at once; and where opening fails on one rank only, no rank keeps the old one.
  if (cache && !cached) *cache = {};
  source.dataset = cached ? cache->dataset : open_dataset(data, path, labels_required);
  if (cache && !cached) *cache = {key, source.dataset, {}, {}};
  Problems problems(fmt::format("the experiment does not fit {}", source.dataset->source()));
  for (const auto& name : choose_modalities(experiment, *source.dataset, problems)) {
    source.modalities.push_back(source.index().find_modality(name));
    source.shape.modalities.push_back(name);
    source.shape.dims.push_back(source.index().modalities[source.modalities.back()].dim);
    source.shape.kinds.push_back(source.index().modalities[source.modalities.back()].kind);
  }
  std::vector<std::unique_ptr<models::Encoder>> encoders;
  if (check_encoders(experiment, source, {}, problems)) {
    encoders = models::make_encoders(experiment, source.shape.modalities);
    check_encoders(experiment, source, encoders, problems);
  }
  for (const auto& encoder : encoders)
    source.id_limits.push_back(encoder ? encoder->id_limits() : data::IdLimits{data::id_limit, data::id_limit});
  for (size_t m = 0; m < encoders.size(); ++m)
    source.limits.push_back(limits_of(experiment, source.index().modalities[source.modalities[m]], encoders[m].get()));
  source.shape.task = source.index().task;
  source.shape.outputs = choose_outputs(experiment, *source.dataset, problems);
  check_metric(experiment, source.index(), for_training, problems);
  check_augment(experiment, source, problems);
  const models::ModelSpec& model = models::spec_of(experiment);
  if (for_training && model.check_data != nullptr && !encoders.empty())
    model.check_data(experiment, models::encoded(source.shape, encoders), problems);
  if (const auto lines = problems.lines(); lines.size() == 1) throw Error(ExitCode::kBadConfig, lines[0]);
  problems.throw_if_any(ExitCode::kBadConfig);
  if (source.index().task == data::Task::kClassification && source.shape.outputs < 2)
    throw Error(ExitCode::kBadData,
                fmt::format("{}: classification needs at least two classes", source.dataset->source()));
  check_lengths(experiment, source, encoders);
  find_usable(experiment, source);
  return source;
}

}  // namespace

int find_encoder(const config::Experiment& experiment, const std::string& modality) {
  for (int i = 0; i < experiment.encoders_size(); ++i)
    if (experiment.encoders(i).modality() == modality) return i;
  return -1;
}

std::string encoder_problem(const data::Modality& modality, int encoder, const models::Encoder* takes,
                            const std::string& source) {
  const auto plural_of = [](data::ModalityKind kind) {
    return kind == data::ModalityKind::kWaveform ? "waveforms" : name_of(kind);
  };
  const bool raw = modality.kind != data::ModalityKind::kFeatures;
  const bool waveform = modality.kind == data::ModalityKind::kWaveform;
  if (encoder < 0 && raw)
    return fmt::format(
        "data.modalities: \"{0}\" is {1}, which needs an encoder: add encoders {{ modality: \"{0}\" "
        "path: ... }}",
        modality.name, waveform ? "a waveform" : "of tokens");
  if (encoder < 0) return "";
  if (!raw)
    return fmt::format(
        "encoders[{}].modality: \"{}\" holds features in {}, and an encoder takes a waveform or tokens: "
        "leave the encoder out, or import the recordings or texts themselves",
        encoder, modality.name, source);
  if (takes == nullptr) return "";
  if (takes->input() != modality.kind)
    return fmt::format("encoders[{}].path: this encoder takes {}, but \"{}\" holds {} in {}", encoder,
                       plural_of(takes->input()), modality.name, plural_of(modality.kind), source);
  if (waveform && takes->sample_rate() > 0 && takes->sample_rate() != modality.sample_rate)
    return fmt::format(
        "encoders[{}].path: this encoder takes {} Hz, but \"{}\" has {} Hz in {}; import it with "
        "--resample {}",
        encoder, takes->sample_rate(), modality.name, modality.sample_rate, source, takes->sample_rate());
  return "";
}

DataSource open_training_data(const config::Experiment& experiment, DatasetCache* cache) {
  return open_source(experiment, "", /*labels_required=*/true, /*for_training=*/true, cache);
}

DataSource open_data(const config::Experiment& experiment, const std::string& path, bool labels_required) {
  return open_source(experiment, path, labels_required, /*for_training=*/false, nullptr);
}

data::Split split_data(const config::Experiment& experiment, const DataSource& source, bool for_training) {
  const auto& config = experiment.data().split();
  data::SplitOptions options;
  options.kind = config.kind() == config::Split::K_FOLD                ? data::SplitKind::kKFold
                 : config.kind() == config::Split::LEAVE_ONE_GROUP_OUT ? data::SplitKind::kLeaveOneGroupOut
                                                                       : data::SplitKind::kFixed;
  options.fold = config.fold();
  options.test_group = config.test_group();
  options.folds = config.folds();
  options.validation_share = config.validation_share();
  options.validation_by_group = config.validation_by_group();
  options.seed = experiment.seed();
  options.for_training = for_training;
  data::Split split;
  try {
    split = data::make_split(source.index(), options);
  } catch (const Error& error) {
    // The split knows samples, not the file they come from.
    if (error.code() != ExitCode::kBadData) throw;
    throw Error(error.code(), fmt::format("{}: {}", source.dataset->source(), error.what()));
  }
  if (source.dropped == 0) return split;
  for (auto* part : {&split.train, &split.valid, &split.test}) {
    std::vector<int64_t> kept;
    std::set_intersection(part->begin(), part->end(), source.usable.begin(), source.usable.end(),
                          std::back_inserter(kept));
    *part = std::move(kept);
  }
  if (for_training && split.train.empty())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: no training sample is left after dropping those that lack a modality",
                            source.dataset->source()));
  return split;
}

void require_training_modalities(const DataSource& source, const std::vector<int64_t>& train) {
  for (size_t m = 0; m < source.modalities.size(); ++m) {
    const auto& modality = source.index().modalities[source.modalities[m]];
    if (std::none_of(train.begin(), train.end(),
                     [&](int64_t sample) { return source.limits[m].of(modality.length(sample)) > 0; }))
      throw Error(ExitCode::kBadData,
                  fmt::format("{}: no training sample has modality '{}'; leave it out of data.modalities, or choose "
                              "another split",
                              source.dataset->source(), modality.name));
  }
}

void require_validation_split(const config::Experiment& experiment, const DataSource& source,
                              const data::Split& split) {
  if (!split.valid.empty()) return;
  if (experiment.data().split().kind() == config::Split::FIXED)
    throw Error(ExitCode::kBadConfig,
                fmt::format("data.split.kind: is FIXED, and {} has no usable sample of split \"valid\": mark some in "
                            "/samples/split, or set K_FOLD or LEAVE_ONE_GROUP_OUT, which draw validation samples "
                            "(data.split.validation_share)",
                            source.dataset->source()));
  throw Error(ExitCode::kBadConfig,
              fmt::format("data.split.validation_share: leaves no sample of {} for validation; set more, e.g. 0.1",
                          source.dataset->source()));
}

void require_finite_features(const DataSource& source, distributed::Communicator& communicator,
                             const std::function<void(int64_t done, int64_t total)>& progress) {
  distributed::run_on_all_ranks(communicator, [&] {
    const auto shares = batch::even_boundaries(source.index().size(), communicator.size());
    const auto report = data::scan_values(*source.dataset, source.modalities, shares[communicator.rank()],
                                          shares[communicator.rank() + 1], progress, source.id_limits);
    if (report.is_good()) return;
    const bool only_segments = report.segments > 0 && report.bad_segments == report.bad_ids;
    throw Error(
        ExitCode::kBadData,
        fmt::format("{}: {}\n{}", source.dataset->source(), data::describe(report),
                    report.non_finite > 0 ? "Replace them before training (importers do so with --nonfinite zero)."
                    : only_segments
                        ? "Use the encoder whose tokenizer made them, or import the texts without segment ids "
                          "(one column) or with those of this encoder's tokenizer."
                        : "Make them with the tokenizer of the encoder (importers do so with --tokenizer)."));
  });
}

std::vector<batch::FeatureMoments> fit_moments(const DataSource& source, const std::vector<int64_t>& samples,
                                               distributed::Communicator& communicator) {
  // A fixed number of partial sums, added in a fixed order: the result has the same bits for any number of ranks.
  constexpr int64_t kPieces = 64;
  const auto pieces = batch::even_boundaries(static_cast<int64_t>(samples.size()), kPieces);
  const auto owners = batch::even_boundaries(kPieces, communicator.size());
  std::vector<int64_t> piece_counts;
  for (int rank = 0; rank < communicator.size(); ++rank) piece_counts.push_back(owners[rank + 1] - owners[rank]);
  const int rank = communicator.rank();
  std::vector<batch::FeatureMoments> moments;
  for (const int64_t modality : source.modalities) {
    if (source.index().modalities[static_cast<size_t>(modality)].kind != data::ModalityKind::kFeatures) {
      moments.push_back(batch::no_moments());
      continue;
    }
    at::Tensor pivot, own;
    distributed::run_on_all_ranks(communicator, [&] {
      pivot = batch::moment_pivot(*source.dataset, modality, samples);
      own = at::zeros({piece_counts[rank], 2 * pivot.size(0) + 1}, at::kDouble);
      for (int64_t piece = owners[rank]; piece < owners[rank + 1]; ++piece) {
        const auto sums = batch::sum_moments(
            *source.dataset, modality, {samples.begin() + pieces[piece], samples.begin() + pieces[piece + 1]}, pivot);
        own[piece - owners[rank]] =
            at::cat({sums.sums.flatten(), at::full({1}, static_cast<double>(sums.frames), at::kDouble)});
      }
    });
    const at::Tensor total = communicator.all_gather_rows(own, piece_counts).sum(0);
    const int64_t dim = pivot.size(0);
    moments.push_back(batch::finish_moments(
        {total.narrow(0, 0, 2 * dim).view({2, dim}), static_cast<int64_t>(total[2 * dim].item<double>())}, pivot));
  }
  return moments;
}

}  // namespace muster::training
