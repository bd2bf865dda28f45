#include "core/models/foal_net.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "base/problems.h"
#include "base/text.h"
#include "core/config/check.h"
#include "core/config/fields.h"
#include "core/kernels/attention.h"
#include "core/models/layers.h"
#include "core/models/make_model.h"

namespace muster::models {
namespace {

constexpr int64_t kAudio = 0;
constexpr int64_t kVideo = 1;
const char* const kRole[] = {"audio", "video"};
const char* const kDirection[] = {"fusion.audio_attends_video", "fusion.video_attends_audio"};

// Dropout layers; each kind of pass has numbers of its own, so that matched and mismatched passes never share a mask.
enum Layer : uint32_t { kFeature = 0, kProjection = 2, kClassifier = 4, kFusion = 8 };
constexpr uint32_t kLayersPerPass = 4096;  // above what the deepest allowed model needs

uint32_t layer_number(int pass_kind, uint32_t layer) {
  return static_cast<uint32_t>(pass_kind) * kLayersPerPass + layer;
}

const Initial kWeight = Initial::normal(0.02);  // measured on the authors' class

// A trainable map in front of both branches: with frozen features the alignment loss reaches the classifier only
// through it.
class Adapter final : public Encoder {
 public:
  Adapter(const config::FoalNet& config, int64_t modality, int64_t data_width)
      : name_(fmt::format("adapter.{}", kRole[modality])),
        hidden_(config.adapter_dim()),
        projects_(config.adapter_output_dim() > 0),
        data_width_(data_width),
        width_(projects_ ? config.adapter_output_dim() : data_width) {}

  int64_t dim() const override { return width_; }

  std::vector<ParameterSpec> specs() const override {
    std::vector<ParameterSpec> specs;
    // Not 0.02, with which a few features would start far below the scale that they have in the data.
    if (projects_)
      add_linear(specs, name_ + ".projection", width_, data_width_, Initial::xavier_uniform(data_width_, width_));
    if (hidden_ > 0) {
      add_linear(specs, name_ + ".input", hidden_, width_, kWeight);
      add_linear(specs, name_ + ".output", width_, hidden_, Initial::constant(0));
      add_layer_norm(specs, name_ + ".norm", width_);
    }
    for (auto& spec : specs) spec.in_encoder = true;
    return specs;
  }

  batch::Ragged encode(const Parameters& parameters, const batch::Ragged& raw, const std::vector<int64_t>&,
                       const StepContext&) const override {
    at::Tensor x = raw.values;
    if (projects_) x = linear(parameters, name_ + ".projection", x).to(parameters.dtype());
    if (hidden_ > 0)
      x = layer_norm(parameters, name_ + ".norm",
                     x + linear(parameters, name_ + ".output", at::gelu(linear(parameters, name_ + ".input", x))));
    return {x, raw.offsets};
  }

 private:
  std::string name_;
  int64_t hidden_;
  bool projects_;
  int64_t data_width_, width_;
};

std::unique_ptr<Encoder> make_adapter(const config::FoalNet& config, int64_t modality, int64_t data_width) {
  if (config.adapter_dim() == 0 && config.adapter_output_dim() == 0) return nullptr;
  return std::make_unique<Adapter>(config, modality, data_width);
}

std::vector<ParameterSpec> foal_net_specs(const config::FoalNet& config, const FoalNet::Sizes& sizes) {
  const int64_t data_widths[] = {sizes.audio_dim, sizes.video_dim};
  const int64_t common = config.adapter_output_dim();
  const int64_t widths[] = {common > 0 ? common : sizes.audio_dim, common > 0 ? common : sizes.video_dim};
  const int64_t projection = config.projection_dim();
  std::vector<ParameterSpec> specs;
  for (const int64_t m : {kAudio, kVideo}) {
    const std::string avel = fmt::format("avel.{}", kRole[m]);
    if (const auto adapter = make_adapter(config, m, data_widths[m])) {
      const auto more = adapter->specs();
      specs.insert(specs.end(), more.begin(), more.end());
    }
    add_linear(specs, avel + ".input", projection, widths[m], kWeight, false);
    add_linear(specs, avel + ".hidden", projection, projection, kWeight, false);
    add_layer_norm(specs, avel + ".norm", projection);
    for (uint32_t layer = 0; layer < config.layers(); ++layer) {
      const std::string name = fmt::format("{}.{}", kDirection[m], layer);
      add_linear(specs, name + ".query", widths[m], widths[m], kWeight);
      add_key_value(specs, name + ".key_value", widths[m], widths[1 - m], kWeight);
      add_linear(specs, name + ".output", widths[m], widths[m], kWeight);
      add_layer_norm(specs, name + ".norm", widths[m]);
    }
    add_linear(specs, fmt::format("mem.{}_head", kRole[m]), 2, widths[m], kWeight);
  }
  if (config.temperature_mode() != config::FoalNet::FIXED_TEMPERATURE) {
    const bool clamped = config.temperature_mode() == config::FoalNet::CLAMPED_DIVISOR;
    specs.push_back({"avel.temperature", {}, Initial::constant(clamped ? 0.07 : std::log(1 / 0.07))});
  }
  add_linear(specs, "classifier", sizes.classes, widths[kAudio] + widths[kVideo], kWeight);
  return specs;
}

std::vector<LossTerm> foal_net_row_terms(const config::FoalNet& config, data::Task task) {
  std::vector<LossTerm> terms{{name_of(task)}};
  if (config.mem_weight() > 0) terms.push_back({"mem", config.mem_weight()});
  return terms;
}

std::vector<LossTerm> foal_net_batch_terms(const config::FoalNet& config) {
  if (config.avel_weight() <= 0) return {};
  return {{"avel", config.avel_weight()}};
}

at::Tensor cross_entropy_sum(const at::Tensor& logits, const at::Tensor& labels) {
  return at::cross_entropy_loss(logits, labels, {}, at::Reduction::Sum);
}

void check_foal_net(const config::Checker& block) {
  for (const char* const width : {"projection_dim", "heads"}) block.count(width);
  block.count("layers", config::kDeepest);
  for (const char* const width : {"adapter_dim", "adapter_output_dim"})
    block.require(block.number(width) <= config::kWidest, width, fmt::format("from 0 (none) to {}", config::kWidest));
  const config::FoalNet& config = block.experiment().foal_net();
  if (config.heads() > 0 && config.adapter_output_dim() % config.heads() != 0)
    block.fail({"heads", "adapter_output_dim"},
               fmt::format("foal_net.heads ({}) must divide foal_net.adapter_output_dim ({})", config.heads(),
                           config.adapter_output_dim()));
  for (const char* const rate : {"feature_dropout", "projection_dropout", "fusion_dropout", "classifier_dropout"})
    block.share(rate);
  block.positive("fixed_temperature");
  block.not_negative("avel_weight");
  block.not_negative("mem_weight");
}

void check_foal_net_data(const config::Experiment& experiment, const DataShape& shape, Problems& problems) {
  const config::FoalNet& config = experiment.foal_net();
  const int64_t heads = config.heads();
  std::vector<std::string> uneven, shared;
  for (size_t m = 0; m < shape.dims.size(); ++m)
    if (shape.dims[m] % heads != 0) uneven.push_back(fmt::format("{} ({})", shape.dims[m], shape.modalities[m]));
  if (config.adapter_output_dim() > 0 || uneven.empty()) return;
  const int64_t divisor = std::accumulate(shape.dims.begin(), shape.dims.end(), int64_t{0}, std::gcd<int64_t, int64_t>);
  for (int64_t few = 1; few <= 16; ++few)
    if (divisor % few == 0) shared.push_back(fmt::format("{}", few));
  problems.add(fmt::format(
      "foal_net.heads: {} heads cannot share features of width {} evenly; set heads to {}, which divide{} {}, or set "
      "foal_net.adapter_output_dim to a multiple of {}, e.g. {}",
      heads, join(uneven, " and "), config::either(shared), shared.size() == 1 ? "s" : "",
      fmt::join(shape.dims, " and "), heads, (127 + heads) / heads * heads));
}

std::string foal_net_objection(const std::vector<std::string>& names) {
  if (names[0] != "vision" && names[1] != "audio") return "";
  return fmt::format("lists \"{}\" before \"{}\", but foal_net takes the audio modality first, then the visual one",
                     names[0], names[1]);
}

// Since version 3 ranks send the frames that an adapter has made, and their gradients, to each other.
std::string changed_since(const config::Experiment& experiment, uint32_t version) {
  const config::FoalNet& config = experiment.foal_net();
  const bool adapts = config.adapter_dim() > 0 || config.adapter_output_dim() > 0;
  return version < 3 && adapts && experiment.training().reproducible()
             ? "the order in which the gradients of foal_net's adapter are added up"
             : "";
}

ModelSpec foal_net_spec() {
  ModelSpec spec;
  spec.name = "foal_net";
  spec.title = "Foal-Net";
  spec.tasks = {data::Task::kClassification, data::Task::kMultilabel};
  spec.modalities = {{"audio", "vision"}, 2, 2, /*every_sample_needs_all=*/true, foal_net_objection};
  spec.check = check_foal_net;
  spec.check_data = check_foal_net_data;
  spec.changed_since = changed_since;
  spec.conditional_fields = {{"fixed_temperature", "temperature_mode", "FIXED_TEMPERATURE"}};
  spec.build = [](const config::Experiment& experiment, const DataShape& shape) -> std::unique_ptr<Model> {
    return std::make_unique<FoalNet>(experiment.foal_net(),
                                     FoalNet::Sizes{shape.dims[0], shape.dims[1], shape.outputs, shape.task},
                                     decay_of(experiment), dtype_of(experiment), experiment.seed());
  };
  return spec;
}

const RegisteredModel registered_foal_net(foal_net_spec());

// [N] int64: equal where the labels are. Of multi-label data, where all classes are.
at::Tensor label_numbers(const at::Tensor& labels) {
  if (labels.dim() == 1) return labels;
  return std::get<1>(at::unique_dim(labels, 0, /*sorted=*/true, /*return_inverse=*/true));
}

at::Tensor same_label(const at::Tensor& logits, int64_t label) {
  return at::full({logits.size(0)}, label, logits.options().dtype(at::kLong));
}

}  // namespace

FoalNet::FoalNet(const config::FoalNet& config, const Sizes& sizes, DecayScope decay, at::ScalarType dtype,
                 uint64_t seed)
    : Model(Parameters(foal_net_specs(config, sizes), decay, dtype, seed), sizes.classes,
            foal_net_row_terms(config, sizes.task), foal_net_batch_terms(config)),
      config_(config) {
  encoders_.push_back(make_adapter(config, kAudio, sizes.audio_dim));
  encoders_.push_back(make_adapter(config, kVideo, sizes.video_dim));
}

int64_t FoalNet::embedding_dim() const {
  const bool compared = config_.avel_weight() > 0 || config_.mem_weight() > 0;
  return compared ? 2 * static_cast<int64_t>(config_.projection_dim()) : 0;
}

losses::Similarity FoalNet::similarity() const {
  using Kind = losses::Similarity::Kind;
  switch (config_.temperature_mode()) {
    case config::FoalNet::FIXED_TEMPERATURE:
      return {Kind::kDivisor, at::scalar_tensor(config_.fixed_temperature(), parameters_.values().options())};
    case config::FoalNet::EXP_SCALE:
      return {Kind::kExpScale, parameters_["avel.temperature"]};
    default:
      return {Kind::kDivisor, parameters_["avel.temperature"]};
  }
}

void FoalNet::project_parameters() {
  const at::NoGradGuard no_gradient;
  if (config_.temperature_mode() == config::FoalNet::EXP_SCALE)
    at::Tensor(parameters_["avel.temperature"]).clamp_(0, std::log(100.0));
  if (config_.temperature_mode() == config::FoalNet::CLAMPED_DIVISOR)
    at::Tensor(parameters_["avel.temperature"]).clamp_(0.001, 0.5);
}

std::optional<double> FoalNet::temperature() const {
  if (config_.temperature_mode() == config::FoalNet::FIXED_TEMPERATURE) return std::nullopt;
  return parameters_["avel.temperature"].item<double>();
}

// Feature dropout: what both branches see.
at::Tensor FoalNet::prepare(int64_t modality, const batch::Ragged& frames, const std::vector<int64_t>& batch_index,
                            Kind kind, const StepContext& step) const {
  const double p = step.training ? config_.feature_dropout() : 0;
  return kernels::dropout(frames.values, p, frames.offsets, batch_index,
                          step.dropout(layer_number(static_cast<int>(kind), kFeature + modality)));
}

at::Tensor FoalNet::project(int64_t modality, const at::Tensor& frames, const batch::Batch& batch,
                            const StepContext& step) const {
  const std::string name = fmt::format("avel.{}", kRole[modality]);
  const at::Tensor e =
      linear(parameters_, name + ".input", kernels::segment_mean(frames, batch.modalities[modality].offsets), false);
  const at::Tensor hidden = linear(parameters_, name + ".hidden", at::gelu(e), false);
  const double p = step.training ? config_.projection_dropout() : 0;
  const at::Tensor dropped =
      kernels::dropout_rows(hidden, p, batch.batch_index, step.dropout(layer_number(0, kProjection + modality)));
  return unit_rows(layer_norm(parameters_, name + ".norm", e + dropped));
}

Embedded FoalNet::embed(const batch::Batch& batch, const StepContext& step) const {
  Embedded embedded;
  for (const int64_t m : {kAudio, kVideo})
    embedded.kept.push_back(prepare(m, batch.modalities[m], batch.batch_index, Kind::kMatched, step));
  if (embedding_dim() > 0)
    embedded.rows = at::cat(
        {project(kAudio, embedded.kept[kAudio], batch, step), project(kVideo, embedded.kept[kVideo], batch, step)}, 1);
  return embedded;
}

std::vector<at::Tensor> FoalNet::batch_losses(const at::Tensor& gathered, const GlobalBatch& global,
                                              const losses::Partition& partition) const {
  if (batch_terms().empty()) return {};
  const auto sides = gathered.chunk(2, 1);
  const auto targets =
      config_.avel_targets() == config::FoalNet::ROW_SUM ? losses::AvelTargets::kRowSum : losses::AvelTargets::kRowMean;
  return {
      losses::avel_loss(sides[kAudio], sides[kVideo], label_numbers(global.labels), similarity(), targets, partition)};
}

std::vector<HardNegatives> FoalNet::hard_negatives(const at::Tensor& gathered, const GlobalBatch& global, int64_t begin,
                                                   int64_t end, const StepContext& step) const {
  if (config_.mem_weight() <= 0 || begin == end) return {};
  // On a GPU the first of these copies is what a step must wait for: it decides what to read. The second comes at once.
  const auto sides = gathered.detach().cpu().chunk(2, 1);
  const losses::Similarity on_host{similarity().kind, similarity().temperature.detach().cpu()};
  const at::Tensor labels = label_numbers(global.labels);
  std::vector<HardNegatives> partners;
  for (const int64_t query : {kAudio, kVideo}) {
    auto chosen = losses::draw_negatives(sides[query], sides[1 - query], labels, on_host, static_cast<uint32_t>(query),
                                         begin, end, step.seed, step.step);
    if (chosen.empty()) return {};
    partners.push_back({1 - query, std::move(chosen)});
  }
  return partners;
}

// Mean over the query's frames after all cross-attention layers of one direction: [samples, width of the query].
at::Tensor FoalNet::fuse(int64_t query_modality, const at::Tensor& query, const std::vector<int64_t>& query_offsets,
                         const at::Tensor& context, const std::vector<int64_t>& context_offsets,
                         const std::vector<int64_t>& batch_index, Kind kind, const StepContext& step) const {
  const double p = step.training ? config_.fusion_dropout() : 0;
  at::Tensor q = query;
  for (uint32_t layer = 0; layer < config_.layers(); ++layer) {
    const std::string name = fmt::format("{}.{}", kDirection[query_modality], layer);
    const at::Tensor attended =
        kernels::attention(linear(parameters_, name + ".query", q), linear(parameters_, name + ".key_value", context),
                           query_offsets, context_offsets, config_.heads());
    const uint32_t number = layer_number(static_cast<int>(kind), kFusion + 2 * layer + query_modality);
    q = layer_norm(parameters_, name + ".norm",
                   q + kernels::dropout(linear(parameters_, name + ".output", attended), p, query_offsets, batch_index,
                                        step.dropout(number)));
  }
  return kernels::segment_mean(q, query_offsets);
}

ForwardOutput FoalNet::forward(const batch::Batch& batch, const Embedded& embedded,
                               const std::vector<batch::Ragged>& negative_frames, const GlobalBatch& global,
                               const StepContext& step) const {
  const double n = static_cast<double>(global.size());
  const auto matched = [&](int64_t m, Kind kind) {
    return fuse(m, embedded.kept[m], batch.modalities[m].offsets, embedded.kept[1 - m], batch.modalities[1 - m].offsets,
                batch.batch_index, kind, step);
  };
  const at::Tensor fused[] = {matched(kAudio, Kind::kMatched), matched(kVideo, Kind::kMatched)};
  const double p = step.training ? config_.classifier_dropout() : 0;
  const at::Tensor features = kernels::dropout_rows(at::cat({fused[kAudio], fused[kVideo]}, 1), p, batch.batch_index,
                                                    step.dropout(layer_number(0, kClassifier)));
  ForwardOutput result;
  result.outputs = linear(parameters_, "classifier", features).to(parameters_.dtype());
  if (!batch.labels.defined()) return result;
  result.losses.push_back(prediction_loss(result.outputs, batch.labels, global.size()));
  if (config_.mem_weight() <= 0) return result;

  // Of N matched and K mismatched pairs per direction; K is N, or 0 when the batch holds one label only.
  const double pairs = negative_frames.empty() ? n : 2 * n;
  at::Tensor mem = at::zeros({}, result.outputs.options());
  for (const int64_t m : {kAudio, kVideo}) {
    const std::string head = fmt::format("mem.{}_head", kRole[m]);
    const at::Tensor positive =
        config_.mem_positive() == config::FoalNet::RECOMPUTE ? matched(m, Kind::kRecomputed) : fused[m];
    const auto match_logits = [&](const at::Tensor& x) { return linear(parameters_, head, x).to(parameters_.dtype()); };
    const at::Tensor positive_logits = match_logits(positive);
    mem = mem + cross_entropy_sum(positive_logits, same_label(positive_logits, 1));
    if (negative_frames.empty()) continue;
    // negative_frames[m] holds the other modality of the negatives of modality m's rows: see hard_negatives().
    const batch::Ragged& other = negative_frames[m];
    const at::Tensor context = prepare(1 - m, other, batch.batch_index, Kind::kMismatched, step);
    const at::Tensor negative = fuse(m, embedded.kept[m], batch.modalities[m].offsets, context, other.offsets,
                                     batch.batch_index, Kind::kMismatched, step);
    const at::Tensor negative_logits = match_logits(negative);
    mem = mem + cross_entropy_sum(negative_logits, same_label(negative_logits, 0));
  }
  result.losses.push_back(mem * (0.5 / pairs));
  return result;
}

}  // namespace muster::models
