#include "core/data/synthetic.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "base/error.h"
#include "base/sha256.h"
#include "base/text.h"
#include "core/data/synthetic_raw.h"
#include "core/random/philox.h"

namespace muster::data {
namespace {

constexpr int64_t max_samples = 10000000;
constexpr double max_noise = 1000;

// What a draw is for: third counter word. kSynthetic .. kSynthetic + 6 are ours, the next three synthetic_raw.cpp's.
enum Draw : uint32_t {
  kFrameNoise = random::kSynthetic,  // first word: block of columns, second: sample, fourth: modality and frame
  kSampleDraws,                      // lengths, places of the signal
  kHidden,                           // z of regression, label noise
  kDirections,                       // fixed directions of a modality
  kSampleOffset,
  kGroupOffset,
  kOrder,  // order of classes within a block, validation share, video sizes
};

struct ModalityShape {
  const char* name;
  int64_t dim;
  int64_t shortest, longest;
  uint32_t key;     // in the counters of what is its own: directions, noise, offsets
  uint32_t source;  // in those of what encoders of the same thing share: lengths, places of the signal; its place in
                    // hidden_values()
  double gain;      // regression: amplitude of the hidden value
};

// In the order of names, as in a file.
const std::vector<ModalityShape> classification_modalities{{"audio", 32, 20, 60, 0, 0, 0},
                                                           {"vision", 24, 10, 30, 1, 1, 0}};
const std::vector<ModalityShape> regression_modalities{{"audio", 12, 10, 50, 0, 0, 3},
                                                       {"text", 24, 5, 25, 1, 1, 3},
                                                       {"text_b", 32, 5, 25, 3, 1, 2.7},
                                                       {"text_c", 16, 5, 25, 4, 1, 2.4},
                                                       {"vision", 16, 10, 40, 2, 2, 3}};

constexpr double strong = 2.6;         // amplitude of a modality's own bit, without agreement
constexpr double weak = 0.5;           // amplitude of the other bit
constexpr double sample_offset = 0.3;  // standard deviation per column
constexpr double group_offset = 0.15;  // standard deviation per column
constexpr double label_noise = 0.25;

// Of the encoders of text only the first so many.
std::vector<ModalityShape> shapes_of(SyntheticKind kind, int64_t text_encoders) {
  if (kind == SyntheticKind::kClassification) return classification_modalities;
  std::vector<ModalityShape> shapes = regression_modalities;
  shapes.erase(shapes.begin() + 1 + text_encoders, shapes.end() - 1);
  return shapes;
}

class Synthetic : public Dataset {
 public:
  Synthetic(SyntheticKind kind, int64_t samples, double noise, uint64_t seed, const SyntheticSignal& signal)
      : kind_(kind), noise_(noise), seed_(seed), signal_(signal), shapes_(shapes_of(kind, signal.text_encoders)) {
    index_.name = classification() ? "synthetic-iemocap" : "synthetic-mosi";
    index_.task = classification() ? Task::kClassification : Task::kRegression;
    // By squares, which sum to the same whatever the agreement; without any, the square roots are exact.
    const double shared = signal.agreement * (strong * strong + weak * weak) / 2;
    own_ = std::sqrt((1 - signal.agreement) * strong * strong + shared);
    other_ = std::sqrt((1 - signal.agreement) * weak * weak + shared);
    for (const ModalityShape& shape : shapes_) {
      add_modality(shape, samples);
      // Two directions each; regression uses the first.
      for (uint32_t which = 0; which < 2; ++which) directions_.push_back(direction(shape, which));
    }
    if (classification())
      fill_classification(samples);
    else
      fill_regression(samples);
  }

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    const Modality& table = index_.modalities.at(static_cast<size_t>(modality));
    const int64_t frames = table.offsets.back();
    if (first < 0 || count < 0 || first > frames || count > frames - first)
      throw std::out_of_range("read_frames: no such frames");
    // No range is empty here, so the sample of a row is the last that starts at or before it.
    int64_t sample = std::upper_bound(table.offsets.begin(), table.offsets.end(), first) - table.offsets.begin() - 1;
    for (int64_t row = first; row < first + count; ++sample) {
      const int64_t begin = row - table.offsets[sample];
      const int64_t end = std::min(first + count, table.offsets[sample + 1]) - table.offsets[sample];
      fill_sample(static_cast<size_t>(modality), sample, begin, end, out + (row - first) * table.dim);
      row += end - begin;
    }
  }

  std::string content_hash() const override {
    std::string description = fmt::format("muster synthetic 1 {} samples={} noise={:.17g} seed={}", index_.name,
                                          index_.size(), noise_, seed_);
    // What is not asked for is not named: the hash of data is older than these.
    if (signal_.agreement != 0) description += fmt::format(" agreement={:.17g}", signal_.agreement);
    if (signal_.text_encoders != 1) description += fmt::format(" text_encoders={}", signal_.text_encoders);
    for (const std::string& name : signal_.without) description += " without=" + name;
    return sha256_of(description);
  }

  std::string source() const override { return "synthetic"; }

 private:
  bool classification() const { return kind_ == SyntheticKind::kClassification; }

  std::array<uint32_t, 4> draw(Draw what, uint32_t a, uint32_t b = 0, uint32_t c = 0) const {
    return random::philox4x32(seed_, {a, b, what, c});
  }

  static std::array<double, 4> four_normals(const std::array<uint32_t, 4>& words) {
    const auto first = random::normal_pair(words[0], words[1]), second = random::normal_pair(words[2], words[3]);
    return {first[0], first[1], second[0], second[1]};
  }

  // Uniform integer in [0, count); the bias of at most count / 2^32 does not matter here.
  static int64_t below(uint32_t word, int64_t count) {
    return static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(count)) >> 32);
  }

  void add_modality(const ModalityShape& shape, int64_t samples) {
    Modality modality;
    modality.name = shape.name;
    modality.dim = shape.dim;
    modality.offsets.push_back(0);
    for (int64_t sample = 0; sample < samples; ++sample) {
      const auto words = draw(kSampleDraws, static_cast<uint32_t>(sample), shape.source);
      modality.offsets.push_back(modality.offsets.back() + shape.shortest +
                                 below(words[0], shape.longest - shape.shortest + 1));
    }
    index_.modalities.push_back(std::move(modality));
  }

  // 0, 1, .. count - 1 in random order.
  template <size_t count>
  std::array<int, count> permutation(uint32_t key0, uint32_t key1) const {
    std::array<int, count> order;
    for (size_t i = 0; i < count; ++i) order[i] = static_cast<int>(i);
    const auto words = draw(kOrder, key0, key1, 0);
    static_assert(count <= 5, "four words order at most five things");
    for (size_t i = count - 1; i > 0; --i)
      std::swap(order[i], order[static_cast<size_t>(below(words[i - 1], static_cast<int64_t>(i) + 1))]);
    return order;
  }

  // Ten samples of a group in a row hold 3, 3, 2 and 2 of the classes, and the first four one of each, so that small
  // sets have all classes too.
  int class_of(uint32_t group, int64_t position) const {
    const auto block = static_cast<uint32_t>(position / 10);
    const auto place = static_cast<size_t>(position % 10);
    const uint32_t key = group << 2;
    if (place < 8) return permutation<4>(block, key | (place < 4 ? 0u : 1u))[place % 4];
    return permutation<2>(block, key | 2u)[place - 8];
  }

  void fill_classification(int64_t samples) {
    index_.class_names = {"happy", "neutral", "sad", "angry"};
    constexpr int64_t sessions = 5;
    int64_t sample = 0, trainable = 0;
    for (int64_t session = 0; session < sessions; ++session) {
      const int64_t end = samples * (session + 1) / sessions;
      const std::string group = fmt::format("Ses0{}", session + 1);
      for (int64_t position = 0; sample < end; ++sample, ++position) {
        index_.ids.push_back(fmt::format("{}_{}", group, position));
        index_.groups.push_back(group);
        index_.labels.push_back(class_of(static_cast<uint32_t>(session), position));
        group_of_.push_back(static_cast<uint32_t>(session));
        index_.splits.push_back(session + 1 == sessions ? "test" : "train");
        if (session + 1 < sessions) ++trainable;
      }
    }
    // One of each ten, and of a rest of at least five.
    for (int64_t block = 0; block < trainable; block += 10) {
      const int64_t size = std::min<int64_t>(10, trainable - block);
      const int64_t chosen = block + below(draw(kOrder, static_cast<uint32_t>(block), 0, 1)[0], size);
      if (size >= 5) index_.splits[static_cast<size_t>(chosen)] = "valid";
    }
  }

  void fill_regression(int64_t samples) {
    const std::array<const char*, 3> words{"train", "valid", "test"};
    const std::array<double, 3> shares{0.60, 0.15, 0.25};
    std::array<int64_t, 3> sizes{};
    int64_t sample = 0;
    for (uint32_t video = 0; sample < samples; ++video) {
      const int64_t size = std::min<int64_t>(3 + below(draw(kOrder, video, 0, 2)[0], 5), samples - sample);
      // Each video goes where most samples are lacking.
      size_t split = 0;
      const auto lacking = [&](size_t i) {
        return shares[i] * static_cast<double>(sample + size) - static_cast<double>(sizes[i]);
      };
      for (size_t i = 1; i < 3; ++i) split = lacking(i) > lacking(split) ? i : split;
      sizes[split] += size;
      const std::string group = fmt::format("video{}", video);
      for (int64_t position = 0; position < size; ++position, ++sample) {
        index_.ids.push_back(fmt::format("{}_{}", group, position));
        index_.groups.push_back(group);
        index_.splits.push_back(words[split]);
        const auto hidden = hidden_values(sample);
        const double sum = hidden[0] + hidden[1] + hidden[2] + label_noise * hidden[3];
        // float32, as a file stores it.
        index_.labels.push_back(static_cast<float>(std::nearbyint(std::clamp(sum, -3.0, 3.0) * 5) / 5));
      }
    }
  }

  // z of audio, text and vision, then the label's noise.
  std::array<double, 4> hidden_values(int64_t sample) const {
    return four_normals(draw(kHidden, static_cast<uint32_t>(sample)));
  }

  // `dim` standard normal numbers.
  std::vector<double> normals(Draw what, int64_t dim, uint32_t b, uint32_t c) const {
    std::vector<double> values;
    for (uint32_t block = 0; static_cast<int64_t>(values.size()) < dim; ++block) {
      const auto four = four_normals(draw(what, block, b, c));
      values.insert(values.end(), four.begin(), four.end());
    }
    values.resize(static_cast<size_t>(dim));
    return values;
  }

  std::vector<double> direction(const ModalityShape& shape, uint32_t which) const {
    auto values = normals(kDirections, shape.dim, shape.key, which);
    double square = 0;
    for (const double value : values) square += value * value;
    for (double& value : values) value /= std::sqrt(square);
    return values;
  }

  // What the signal frames of a sample hold more than the others.
  std::vector<double> signal(size_t modality, int64_t sample) const {
    const auto& first = directions_[2 * modality];
    const auto& second = directions_[2 * modality + 1];
    std::vector<double> values(first.size());
    const ModalityShape& shape = shapes_[modality];
    if (signal_.without.count(shape.name) != 0) return values;
    double first_weight = 0, second_weight = 0;
    if (classification()) {
      const int label = static_cast<int>(index_.labels[sample]);
      const double a = (label & 2) ? 1 : -1;
      const double b = (label & 1) ? 1 : -1;
      const bool audio = modality == 0;
      first_weight = (audio ? own_ : other_) * a;
      second_weight = (audio ? other_ : own_) * b;
    } else {
      first_weight = shape.gain * hidden_values(sample)[shape.source];
    }
    for (size_t i = 0; i < values.size(); ++i) values[i] = first_weight * first[i] + second_weight * second[i];
    return values;
  }

  // What all frames of a sample share, whatever its label.
  std::vector<double> nuisance(const ModalityShape& shape, int64_t sample) const {
    if (!classification()) return std::vector<double>(static_cast<size_t>(shape.dim), 0.0);
    auto values = normals(kSampleOffset, shape.dim, static_cast<uint32_t>(sample), shape.key);
    const auto shared = normals(kGroupOffset, shape.dim, group_of_[sample], shape.key);
    for (size_t i = 0; i < values.size(); ++i) values[i] = sample_offset * values[i] + group_offset * shared[i];
    return values;
  }

  // Frames [begin, end) of one sample.
  void fill_sample(size_t modality, int64_t sample, int64_t begin, int64_t end, float* out) const {
    const ModalityShape& shape = shapes_[modality];
    const int64_t length = index_.modalities[modality].length(sample);
    const int64_t signal_frames = (length + 2) / 3;
    const int64_t signal_begin =
        below(draw(kSampleDraws, static_cast<uint32_t>(sample), shape.source)[1], length - signal_frames + 1);
    const auto extra = signal(modality, sample);
    const auto base = nuisance(shape, sample);
    for (int64_t frame = begin; frame < end; ++frame) {
      const bool has_signal = frame >= signal_begin && frame < signal_begin + signal_frames;
      for (int64_t column = 0; column < shape.dim; column += 4) {  // every width is a multiple of four
        const auto values =
            four_normals(draw(kFrameNoise, static_cast<uint32_t>(column / 4), static_cast<uint32_t>(sample),
                              (shape.key << 16) | static_cast<uint32_t>(frame)));
        for (size_t i = 0; i < 4; ++i)
          *out++ = static_cast<float>(noise_ * values[i] + base[column + i] + (has_signal ? extra[column + i] : 0.0));
      }
    }
  }

  const SyntheticKind kind_;
  const double noise_;
  const uint64_t seed_;
  const SyntheticSignal signal_;
  const std::vector<ModalityShape> shapes_;  // as index_.modalities
  double own_ = 0, other_ = 0;               // classification: amplitudes of a modality's own bit and of the other
  std::vector<uint32_t> group_of_;
  std::vector<std::vector<double>> directions_;
};

}  // namespace

std::unique_ptr<Dataset> make_synthetic(SyntheticKind kind, int64_t samples, double noise, uint64_t seed,
                                        const SyntheticSignal& signal) {
  const auto require = [](bool right, const std::string& wrong) {
    if (!right) throw Error(ExitCode::kBadConfig, fmt::format("synthetic data: {}.", wrong));
  };
  const bool classification = kind == SyntheticKind::kClassification;
  require(samples >= 1 && samples <= max_samples,
          fmt::format("samples is {}; it must be from 1 to {}", samples, max_samples));
  require(noise >= 0 && noise <= max_noise, fmt::format("noise is {:f}; it must be from 0 to 1000", noise));
  require(signal.agreement >= 0 && signal.agreement <= 1,
          fmt::format("agreement is {:f}; it must be from 0 to 1", signal.agreement));
  require(classification || signal.agreement == 0, "agreement is for classification; for regression it must be 0");
  require(signal.text_encoders >= 1 && signal.text_encoders <= 3,
          fmt::format("text_encoders is {}; it must be from 1 to 3", signal.text_encoders));
  require(!classification || signal.text_encoders == 1,
          "text_encoders is for regression; classification has no text, so it must be 1");
  require(classification || !signal.raw, "raw is for classification");
  require(!signal.raw || signal.agreement == 0, "raw data has no agreement; it must be 0");
  std::vector<std::string> names;
  for (const ModalityShape& shape : shapes_of(kind, signal.text_encoders)) names.push_back(shape.name);
  if (signal.raw) names = {"audio", "text"};
  for (const std::string& name : signal.without)
    require(std::find(names.begin(), names.end(), name) != names.end(),
            fmt::format("without_signal names \"{}\", which is not among its modalities: \"{}\"", name,
                        join(names, "\", \"")));
  if (signal.raw)
    return make_raw_synthetic(Synthetic(kind, samples, noise, seed, {}).index(), noise, seed, signal.without);
  return std::make_unique<Synthetic>(kind, samples, noise, seed, signal);
}

}  // namespace muster::data
