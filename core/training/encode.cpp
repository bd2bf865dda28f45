#include "core/training/encode.h"

#include <fmt/format.h>

#include "base/text.h"
#include "core/config/resolved_text.h"
#include "core/models/encoders/make_encoder.h"
#include "core/models/make_model.h"
#include "core/run/stop.h"
#include "core/training/compute.h"
#include "core/training/data_source.h"
#include "core/training/extraction.h"
#include "core/training/same_job.h"
#include "distributed/watchdog.h"

namespace muster::training {

EncodedData encode_dataset(const config::Experiment& experiment, const std::string& output,
                           distributed::Communicator& control, run::Progress& progress) {
  if (experiment.encoders_size() == 0)
    throw SharedError(ExitCode::kUsage,
                      "the experiment has no encoders: add encoders { modality: ... path: ... }, which is what to "
                      "extract features with");
  for (int i = 0; i < experiment.encoders_size(); ++i)
    if (experiment.encoders(i).weighted_layers())
      throw SharedError(ExitCode::kBadConfig,
                        fmt::format("encoders[{}].weighted_layers: the weights of the sum are learnt in training; to "
                                    "extract features choose one layer with encoders[{}].layer",
                                    i, i));
  const Compute compute = prepare_compute(experiment.training(), control);
  require_same_job(control, config::resolved_text(experiment) + output);
  const std::string parts = output + ".parts";
  DataSource source;
  std::vector<std::unique_ptr<models::Encoder>> encoders;
  std::optional<models::Parameters> parameters;
  std::vector<std::string> notes;
  distributed::run_on_all_ranks(control, [&] {
    if (control.rank() == 0) require_own_pieces(parts, "");
    source = open_data(experiment, "", /*labels_required=*/false);
    encoders = models::make_encoders(experiment, source.shape.modalities);
    std::vector<models::ParameterSpec> specs;
    for (const auto& encoder : encoders)
      if (encoder)
        for (auto& spec : encoder->specs()) {
          spec.trained = false;  // no gradients
          specs.push_back(std::move(spec));
        }
    parameters.emplace(specs, models::DecayScope::kAll, models::dtype_of(experiment), experiment.seed());
    for (const auto& encoder : encoders)
      if (encoder && encoder->is_pretrained()) encoder->load(*parameters);
    if (control.rank() == 0) notes = models::preparation_notes(experiment);
  });
  for (const auto& note : notes) progress.line("note: " + note);
  require_finite_features(source, control, [&](int64_t done, int64_t total) {
    distributed::report_progress();
    progress.work("checking data, sample", done, total);
  });
  const std::string data_sha256 = require_same_data(*source.dataset, control);
  require_same_encoders(experiment, *parameters, control);
  std::string key;
  distributed::run_on_all_ranks(control, [&] {
    if (control.rank() == 0) key = extraction_key(experiment, data_sha256, encoders, *parameters);
  });
  key = control.all_gather_bytes(key)[0];
  parameters->move_to(compute.device);
  const Extraction extraction{source, encoders, *parameters, compute, key, parts, ""};
  run::save_on_stop();
  const Extracted extracted =
      extract(extraction, control, progress, [&] { return run::stop_request(control.rank(), control.size()); });
  if (!extracted.stopped_by.empty())
    throw SharedError(ExitCode::kRequeue,
                      fmt::format("stopped by {}: features of at least {} of {} samples are kept in {}; continue, on "
                                  "any number of ranks, with the same command",
                                  extracted.stopped_by, extracted.samples, source.index().size(), printable(parts)));
  distributed::run_on_all_ranks(control, [&] {
    if (control.rank() != 0) return;
    write_extracted(extraction, output, /*encoded_only=*/false);
    remove_pieces(extraction);
  });
  return {extracted.samples, extracted.found};
}

}  // namespace muster::training
