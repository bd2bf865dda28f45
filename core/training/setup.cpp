#include "core/training/setup.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/json.h"
#include "base/sha256.h"
#include "base/text.h"
#include "checkpoints/retention.h"
#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "core/models/encoders/make_encoder.h"
#include "core/models/make_model.h"
#include "core/run/environment.h"
#include "core/run/kept_encoders.h"
#include "core/run/stop.h"
#include "core/run/weights.h"
#include "core/training/frozen_features.h"
#include "core/training/same_job.h"
#include "distributed/watchdog.h"

namespace muster::training {
namespace {

// What rank 0 does with the run directory. As run_on_all_ranks(), but that another job holds it is a type of its own.
void at_run_directory(TrainingRun& run, const std::function<void()>& work) {
  std::string taken;
  distributed::run_on_all_ranks(run.communicator, [&] {
    try {
      if (run.is_main()) work();
    } catch (const run::RunDirInUse& error) {
      taken = error.what();
    }
  });
  taken = run.communicator.all_gather_bytes(taken)[0];
  if (!taken.empty()) throw run::SharedRunDirInUse(taken);
}

std::function<void(const std::string&)> line_printer(TrainingRun& run) {
  return [&run](const std::string& text) { run.progress.line(text); };
}

// Decides between a new run and one that is resumed; the latter's directory is locked from here on.
void find_run_directory(TrainingRun& run) {
  if (run.options.begin != Begin::kNew) run::save_on_stop();  // from here on there may be a lock to release
  std::string kind = "new";
  at_run_directory(run, [&] {
    const std::string& path = run.options.run_directory;
    const run::RunDirState place = run::run_dir_state(path);
    const bool is_new = place == run::RunDirState::kNothing || place == run::RunDirState::kPrepared;
    if (run.options.begin == Begin::kResume || (run.options.begin == Begin::kAuto && !is_new)) {
      kind = "resume";
      if (run.options.dry_run) return;
      run.directory.emplace(path, line_printer(run), run.policy.writes_all_files);
      checkpoints::sweep_leftovers(run.directory->file("checkpoints"));
      if (!checkpoints::find_checkpoints(run.directory->file("checkpoints")).empty()) kind = "from checkpoint";
    } else if (!run.options.dry_run) {
      run::require_new_run_directory(path);
    }
  });
  kind = run.communicator.all_gather_bytes(kind)[0];
  run.resumes = kind != "new";
  run.has_checkpoints = kind == "from checkpoint";
}

// Whether all features are finite, and what the data's hash is: known already where an earlier run of this process had
// the same data.
void check_data(TrainingRun& run) {
  auto& known = run.datasets;
  if (std::find(known.finite.begin(), known.finite.end(), run.data.modalities) == known.finite.end()) {
    require_finite_features(run.data, run.communicator, [&](int64_t done, int64_t total) {
      distributed::report_progress();
      run.progress.work("checking features, sample", done, total);
    });
    run.progress.clear();
    known.finite.push_back(run.data.modalities);
  }
  if (known.sha256.empty()) known.sha256 = require_same_data(*run.data.dataset, run.communicator);
  run.provenance = run::provenance_of_this_job(known.sha256, run.compute.numerics);
}

// A run that has no checkpoint yet must start again from the weights that it started from.
void require_same_initial_weights(const TrainingRun& run) {
  if (run.is_main()) {
    const auto encoders = run::recorded_encoders(run.options.run_directory);
    for (const auto& [modality, recorded] : encoders.items())
      if (const auto now = text_in(member_of(run.encoder_hashes, modality.c_str()), "sha256");
          now != text_in(recorded, "sha256"))
        throw Error(
            ExitCode::kBadConfig,
            fmt::format("{}: this run has no checkpoint yet and starts again, but the encoder of {} is not the "
                        "one that it started from ({}, SHA-256 {}). Begin a new run in another --run-dir, or "
                        "add --force.",
                        run.options.run_directory, modality, text_in(recorded, "path"), text_in(recorded, "sha256")));
  }
  const run::InitFrom recorded = run::recorded_init_from(run.options.run_directory);
  if (recorded.sha256 == run.init_from.sha256) return;
  const auto text = [](const run::InitFrom& weights) {
    return weights.path.empty() ? std::string("its own initial weights")
                                : fmt::format("{} (SHA-256 {})", weights.path, weights.sha256);
  };
  throw Error(ExitCode::kBadConfig,
              fmt::format("{}: this run has no checkpoint yet and starts again, but not from the weights that it "
                          "started from: {} -> {}. Give those with --init-from, or begin a new run in another "
                          "--run-dir, or add --force.",
                          run.options.run_directory, text(recorded), text(run.init_from)));
}

void load_initial_weights(TrainingRun& run) {
  if (run.has_checkpoints && run.config.encoders_size() > 0)
    throw Error(ExitCode::kBadData,
                fmt::format("{}: no checkpoint of this run can be used, so it would begin again; remove {}/checkpoints "
                            "to have it do so, from its encoders' folders",
                            run.options.run_directory, run.options.run_directory));
  run.model->load_pretrained();
  if (run.is_main()) run.encoder_hashes = run::encoder_hashes(run.config);
  const std::string& path = run.options.init_from;
  if (!path.empty()) run.init_from = {path, sha256_of_file(path)};
  if (run.resumes && !run.options.force) require_same_initial_weights(run);
  if (path.empty()) return;
  const run::Weights weights = run::read_weights(path, run.data.shape);
  run::load_weights(weights, path, run.data.index(), run.config.data().standardize(), run.model->parameters());
}

// What checkpoints hold of the model itself; before it moves to its device.
void restore_weights(TrainingRun& run) {
  const std::string& source = run.resume_point.loaded->checkpoint.path;
  const run::Weights weights = run::weights_in(run.resume_point.loaded->tensors, source, run.data.shape);
  run::load_weights(weights, source, run.data.index(), run.config.data().standardize(), run.model->parameters());
  run.moments = weights.moments;
}

// The rest of it.
void restore_progress(TrainingRun& run) {
  const auto& tensors = run.resume_point.loaded->tensors;
  const std::string& source = run.resume_point.loaded->checkpoint.path;
  auto& parameters = run.model->parameters();
  auto& state = run.state;
  run::restore_optimizer(tensors, source, parameters, *run.optimizer);
  state = run.resume_point.state;
  run.earlier_seconds = state.seconds();
  if (state.has_best())
    run.best_values = state.best().step() == state.steps_done() ? parameters.values().clone()
                                                                : run::best_in(tensors, source, parameters);
  // The patience may have changed since.
  const uint32_t patience = run.config.evaluation().patience();
  state.set_stopped_early(patience > 0 && state.evaluations_without_improvement() >= patience);
  run.resume_point.loaded.reset();
}

nlohmann::json data_description(const TrainingRun& run) {
  return {{"source", run.data.dataset->source()}, {"sha256", run.provenance.data_sha256()},
          {"samples", run.data.index().size()},   {"train", run.split.train.size()},
          {"valid", run.split.valid.size()},      {"test", run.split.test.size()},
          {"dropped", run.data.dropped}};
}

void continue_run_directory(TrainingRun& run, nlohmann::json job, const std::string& config_text) {
  auto& directory = *run.directory;
  // Checkpoints of later steps were found damaged: they must not count as the newest ones any more.
  for (const auto& found : checkpoints::find_checkpoints(directory.file("checkpoints")))
    if (found.step > run.state.steps_done()) checkpoints::set_aside(found.path);
  directory.continue_after(run.state.steps_done());
  nlohmann::json environment = directory.environment();
  job["from_step"] = run.state.steps_done();
  job["changes"] = run.resume_point.changes;
  environment["resumes"].push_back(job);
  directory.write("environment.json", json_text(environment, 2) + "\n");
  directory.write("config.txtpb", config_text);
  directory.remove("result.json");
  run::keep_encoders(run.config, directory);
  // The file may be newer than the checkpoint, and what comes after it may be different this time.
  if (run.best_values.defined() && run.policy.writes_all_files)
    run.write_best_weights(run.best_values, run.state.best().step());
}

}  // namespace

void TrainingRun::write_best_weights(const at::Tensor& values, uint64_t step) {
  directory->require_held();
  state.mutable_best()->set_fingerprint(
      run::write_weights(directory->file("weights/best.safetensors"),
                         run::weight_tensors(model->parameters().all_parts(values), moments, data.shape.modalities),
                         run::weights_metadata(config.name(), step, data.index())));
}

void prepare(TrainingRun& run) {
  auto& communicator = run.communicator;
  const auto on_all_ranks = [&](const std::function<void()>& work) {
    distributed::run_on_all_ranks(communicator, [&] { config::with_places(run.loaded, work); });
  };
  find_run_directory(run);
  // Where there are checkpoints, the encoders' weights come from there, and what they are is for the run to say.
  config::Experiment config = run.config;
  on_all_ranks([&] {
    if (run.has_checkpoints)
      config = run::with_kept_encoders(run.config, run.options.run_directory);
    else if (run.resumes && !run.options.force)
      run::require_kept_encoders(run.config, run.options.run_directory);
    run.data = open_training_data(config, &run.datasets);
    run.split = split_data(config, run.data, true);
    if (!run.resumes) require_training_modalities(run.data, run.split.train);  // earlier versions began such runs
    if (!run.policy.sees_test_split) {
      run.split.test.clear();
      require_validation_split(config, run.data, run.split);
    }
    run.frozen = run.policy.writes_all_files ? frozen_modalities(config) : std::set<std::string>();
    run.model = models::make_model(config, run.data.shape, run.frozen);
    if (run.is_main() && !run.has_checkpoints) run.encoder_notes = models::preparation_notes(config);
  });
  run.progress.line(fmt::format("reading {}: {} samples", run.data.dataset->source(), run.data.index().size()));
  check_data(run);
  run.plan.emplace(run.loaded, run.data.index(), run.split.train);
  run.select_by = config.evaluation().select_by();
  if (run.select_by.empty()) run.select_by = models::spec_of(config).default_metric(run.data.index().task);
  if (run.resumes)
    run.resume_point = run::find_resume_point(run.options.run_directory, run.config, run.provenance, run.options.force,
                                              communicator, run.progress);

  const bool from_checkpoint = run.resume_point.loaded.has_value();
  if (config.data().standardize() && !from_checkpoint)
    run.moments = fit_moments(run.data, run.split.train, communicator);
  distributed::run_on_all_ranks(communicator,
                                [&] { from_checkpoint ? restore_weights(run) : load_initial_weights(run); });
  auto& parameters = run.model->parameters();
  require_same_weights(parameters, run.moments, communicator);
  require_same_encoders(config, parameters, communicator);
  parameters.move_to(run.compute.device);
  run.frozen.empty() ? make_step(run) : require_room_on_device(run);
  const auto& adamw = config.optimizer();
  run.optimizer = std::make_unique<optim::AdamW>(
      parameters, optim::AdamWOptions{adamw.beta1(), adamw.beta2(), adamw.epsilon(), adamw.weight_decay()});
  if (from_checkpoint) distributed::run_on_all_ranks(communicator, [&] { restore_progress(run); });
}

void make_step(TrainingRun& run) {
  const auto& training = run.config.training();
  // Frozen encoders have had all of a sample that they may see.
  std::vector<batch::RowLimits> limits = run.data.limits;
  for (size_t m = 0; m < limits.size(); ++m)
    if (run.frozen.count(run.data.shape.modalities[m])) limits[m] = {};
  run.reader = std::make_unique<batch::BatchReader>(run.with_frozen ? *run.with_frozen : *run.data.dataset,
                                                    run.data.modalities, run.moments, run.model->parameters().dtype(),
                                                    run.compute.device, run.config.data().standardize_in_float32(),
                                                    std::move(limits), run.config.data().clip_standardized());
  distributed::run_on_all_ranks(run.communicator, [&] {
    config::with_places(run.loaded,
                        [&] { run.reader->keep_on_device(training.data_on_device(), run.compute.ranks_on_gpu); });
  });
  run.step = std::make_unique<Step>(*run.model, *run.reader, run.communicator,
                                    StepOptions{run.compute.microbatches, run.compute.reproducible, run.compute.bf16,
                                                training.recompute() == config::Training::ENCODERS});
}

namespace {

std::string parameters_text(const models::Parameters& parameters) {
  const int64_t all = parameters.count(), trained = parameters.trained_count();
  return fmt::format("{} parameters{}", all, trained < all ? fmt::format(", {} of them trained", trained) : "");
}

// Settings without an effect on this data and this model; others are noted where the experiment is read.
std::vector<std::string> ineffective_settings(const TrainingRun& run) {
  std::vector<std::string> notes;
  const auto note = [&](const char* path, const char* value, const std::string& why) {
    const std::string place = config::where(run.loaded, path);
    if (place != "default" && place.rfind("preset ", 0) != 0)
      notes.push_back(fmt::format("{}: {} = {} has no effect: {}", place, path, value, why));
  };
  const auto& kinds = run.data.shape.kinds;
  if (run.config.data().standardize() && std::count(kinds.begin(), kinds.end(), data::ModalityKind::kFeatures) == 0)
    note("data.standardize", "true",
         fmt::format("it is for features from the data file, and {} recordings or texts, which their encoders take as "
                     "they were trained to",
                     run.data.shape.modalities.size() == 1 ? run.data.shape.modalities[0] + " holds"
                                                           : join(run.data.shape.modalities, " and ") + " hold"));
  bool trains_encoders = false;
  for (size_t m = 0; m < kinds.size(); ++m)
    if (const auto* encoder = run.model->encoder(static_cast<int64_t>(m)))
      trains_encoders = trains_encoders || encoder->is_trained();
  if (run.config.training().recompute() == config::Training::ENCODERS && !trains_encoders)
    note("training.recompute", "ENCODERS", "no encoder and no adapter is trained, so there is no graph to be saved");
  return notes;
}

}  // namespace

std::string summary(const TrainingRun& run) {
  const int ranks = run.communicator.size(), threads = run.compute.threads;
  std::string text = fmt::format("{}: {}, {}; {} train, {} valid, {} test samples", run.config.name(),
                                 models::spec_of(run.config).title, parameters_text(run.model->parameters()),
                                 run.split.train.size(), run.split.valid.size(), run.split.test.size());
  if (run.data.dropped > 0) text += fmt::format(" ({} dropped: a modality is missing)", run.data.dropped);
  text += fmt::format("; global batch {} on {}, {} each; {} steps", run.config.training().batch_size(),
                      plural(ranks, "rank"), plural(threads, "thread"), run.plan->total_steps());
  if (const uint64_t done = run.resume_point.state.steps_done(); run.resumes)
    text += done > 0 ? fmt::format("\ncontinues after step {}, epoch {}", done, run.plan->epoch_of(done))
                     : "\nno checkpoint was committed: starts again";
  if (run.compute.microbatches < ranks)
    text += fmt::format("\nnote: training.microbatches is {}: the other ranks of {} have nothing to do",
                        run.compute.microbatches, ranks);
  if (!run.compute.note.empty()) text += "\nnote: " + run.compute.note;
  if (!run.frozen.empty())
    text += fmt::format("\nthe frozen encoder of {} runs once; the features are kept in {} until the run is finished",
                        join({run.frozen.begin(), run.frozen.end()}, " and of "),
                        frozen_features_folder(run.options.run_directory));
  for (size_t m = 0; m < run.data.shape.modalities.size(); ++m)
    if (const auto* encoder = run.model->encoder(static_cast<int64_t>(m)))
      if (const auto ignored = encoder->ignored_tensors(); !ignored.empty())
        text += fmt::format("\nnote: the encoder of {} does not need these of its file's tensors: {}",
                            run.data.shape.modalities[m], join_first(ignored, 10));
  for (const auto& notes : {run.encoder_notes, run.loaded.notes, ineffective_settings(run)})
    for (const auto& note : notes) text += "\nnote: " + note;
  return text;
}

bool is_concluded(TrainingRun& run) {
  // Without a checkpoint to continue from the result alone says that there is one, if it is of this experiment.
  const bool is_lost = run.state.steps_done() == 0, by_result = is_lost || !run.policy.writes_all_files;
  if (!run.resumes || !(run.is_finished() || by_result)) return false;
  std::string verdict;
  distributed::run_on_all_ranks(run.communicator, [&] {
    if (!run.is_main() || !std::filesystem::exists(run.directory->file("result.json"))) return;
    const auto stored = config::load_stored_experiment(run.directory->file("config.txtpb")).experiment;
    if (run.is_finished() || config::differences(stored, run.config).empty()) {
      verdict = "concluded";
    } else if (is_lost) {
      throw Error(
          ExitCode::kUsage,
          fmt::format("{0}: the run is finished, and no checkpoint is left from which it could be continued with "
                      "other settings (trials of a search and runs of a study keep none). Begin another one: "
                      "muster train {0}/config.txtpb --run-dir NEW --set ...",
                      run.options.run_directory));
    }
  });
  return run.communicator.all_gather_bytes(verdict)[0] == "concluded";
}

void open_for_writing(TrainingRun& run) {
  if (const int cores = usable_cores(), threads = run.compute.threads;
      run.communicator.size() == 1 && run.compute.device.is_cpu() && threads < cores)
    run.progress.advise_if_long(cores - threads,
                                fmt::format("this run uses {} of {} cores and will take minutes. With more ranks it "
                                            "gives the same model, probably sooner: stop it (Ctrl-C saves), then "
                                            "muster launch -n {} resume {}",
                                            threads, cores, cores, run.options.run_directory));
  run::save_on_stop();
  nlohmann::json job = run::describe_environment(run.communicator, run.options.command_line, describe_rank(run.compute),
                                                 describe_job(run.compute));
  if (run.communicator.size() > 1) run.progress.line(run::rank_table(job["ranks"]));
  job["steps"] = {{"total", run.plan->total_steps()}, {"per_epoch", run.plan->steps_per_epoch()}};
  at_run_directory(run, [&] {
    const std::string config_text = config::resolved_text(run.config);
    if (run.resumes) return continue_run_directory(run, job, config_text);
    job["data"] = data_description(run);
    if (!run.encoder_hashes.is_null()) job["encoders"] = run.encoder_hashes;
    if (!run.init_from.path.empty())
      job["init_from"] = {{"path", run.init_from.path}, {"sha256", run.init_from.sha256}};
    run.directory.emplace(run.options.run_directory, config_text, job, line_printer(run), run.policy.writes_all_files);
    run::keep_encoders(run.config, *run.directory);
  });
  distributed::keep_flight_records_in(run.options.run_directory + "/logs");
}

}  // namespace muster::training
