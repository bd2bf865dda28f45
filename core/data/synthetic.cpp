#include "core/data/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "checkpoints/sha256.h"
#include "core/random/philox.h"
#include "distributed/error.h"

namespace muster::data {
namespace {

using distributed::Error;
using distributed::ExitCode;

constexpr int64_t max_samples = 10000000;
constexpr double max_noise = 1000;

// What a draw is for: third counter word. kSynthetic .. kSynthetic + 9 are ours.
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
};

constexpr std::array<ModalityShape, 2> classification_modalities{{{"audio", 32, 20, 60}, {"vision", 24, 10, 30}}};
// In the order of names, as in a file.
constexpr std::array<ModalityShape, 3> regression_modalities{
    {{"audio", 12, 10, 50}, {"text", 24, 5, 25}, {"vision", 16, 10, 40}}};

constexpr double strong = 2.6;         // amplitude of a modality's own bit
constexpr double weak = 0.5;           // amplitude of the other bit
constexpr double sample_offset = 0.3;  // standard deviation per column
constexpr double group_offset = 0.15;  // standard deviation per column
constexpr double regression_gain = 3;
constexpr double label_noise = 0.25;

class Synthetic : public Dataset {
 public:
  Synthetic(SyntheticKind kind, int64_t samples, double noise, uint64_t seed)
      : kind_(kind), noise_(noise), seed_(seed) {
    index_.name = classification() ? "synthetic-iemocap" : "synthetic-mosi";
    index_.task = classification() ? Task::kClassification : Task::kRegression;
    if (classification()) {
      add_modalities(classification_modalities, samples);
      fill_classification(samples);
    } else {
      add_modalities(regression_modalities, samples);
      fill_regression(samples);
    }
    for (uint32_t modality = 0; modality < index_.modalities.size(); ++modality) {
      // Two directions each; regression uses the first.
      for (uint32_t which = 0; which < 2; ++which) directions_.push_back(direction(modality, which));
    }
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
      fill_sample(static_cast<uint32_t>(modality), sample, begin, end, out + (row - first) * table.dim);
      row += end - begin;
    }
  }

  std::string content_hash() const override {
    char text[160];
    const int length = std::snprintf(text, sizeof(text), "muster synthetic 1 %s samples=%lld noise=%.17g seed=%llu",
                                     index_.name.c_str(), static_cast<long long>(index_.size()), noise_,
                                     static_cast<unsigned long long>(seed_));
    return checkpoints::sha256_of({text, static_cast<size_t>(length)});
  }

  std::string source() const override { return "synthetic"; }

 private:
  bool classification() const { return kind_ == SyntheticKind::kClassification; }

  std::array<uint32_t, 4> draw(Draw what, uint32_t a, uint32_t b = 0, uint32_t c = 0) const {
    return random::philox4x32(seed_, {a, b, what, c});
  }

  // Uniform integer in [0, count); the bias of at most count / 2^32 does not matter here.
  static int64_t below(uint32_t word, int64_t count) {
    return static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(count)) >> 32);
  }

  template <typename Shapes>
  void add_modalities(const Shapes& shapes, int64_t samples) {
    uint32_t position = 0;
    for (const ModalityShape& shape : shapes) {
      Modality modality;
      modality.name = shape.name;
      modality.dim = shape.dim;
      modality.offsets.push_back(0);
      for (int64_t sample = 0; sample < samples; ++sample) {
        const auto words = draw(kSampleDraws, static_cast<uint32_t>(sample), position);
        modality.offsets.push_back(modality.offsets.back() + shape.shortest +
                                   below(words[0], shape.longest - shape.shortest + 1));
      }
      index_.modalities.push_back(std::move(modality));
      ++position;
    }
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

  // Ten samples of a group in a row hold 3, 3, 2 and 2 of the classes, and the first four one of each, so that small sets
  // have all classes too.
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
      const std::string group = "Ses0" + std::to_string(session + 1);
      for (int64_t position = 0; sample < end; ++sample, ++position) {
        index_.ids.push_back(group + "_" + std::to_string(position));
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
      const std::string group = "video" + std::to_string(video);
      for (int64_t position = 0; position < size; ++position, ++sample) {
        index_.ids.push_back(group + "_" + std::to_string(position));
        index_.groups.push_back(group);
        index_.splits.push_back(words[split]);
        const auto hidden = hidden_values(sample);
        const double sum = hidden[0] + hidden[1] + hidden[2] + label_noise * hidden[3];
        // float32, as a file stores it.
        index_.labels.push_back(static_cast<float>(std::nearbyint(std::clamp(sum, -3.0, 3.0) * 5) / 5));
      }
    }
  }

  // z of each modality, then the label's noise.
  std::array<double, 4> hidden_values(int64_t sample) const {
    const auto words = draw(kHidden, static_cast<uint32_t>(sample));
    const auto first = random::normal_pair(words[0], words[1]);
    const auto second = random::normal_pair(words[2], words[3]);
    return {first[0], first[1], second[0], second[1]};
  }

  // `dim` standard normal numbers.
  std::vector<double> normals(Draw what, int64_t dim, uint32_t b, uint32_t c) const {
    std::vector<double> values;
    for (uint32_t block = 0; static_cast<int64_t>(values.size()) < dim; ++block) {
      const auto words = draw(what, block, b, c);
      const auto first = random::normal_pair(words[0], words[1]);
      const auto second = random::normal_pair(words[2], words[3]);
      values.insert(values.end(), {first[0], first[1], second[0], second[1]});
    }
    values.resize(static_cast<size_t>(dim));
    return values;
  }

  std::vector<double> direction(uint32_t modality, uint32_t which) const {
    auto values = normals(kDirections, index_.modalities[modality].dim, modality, which);
    double square = 0;
    for (const double value : values) square += value * value;
    for (double& value : values) value /= std::sqrt(square);
    return values;
  }

  // What the signal frames of a sample hold more than the others.
  std::vector<double> signal(uint32_t modality, int64_t sample) const {
    const auto& first = directions_[2 * modality];
    const auto& second = directions_[2 * modality + 1];
    std::vector<double> values(first.size());
    double first_weight = 0, second_weight = 0;
    if (classification()) {
      const int label = static_cast<int>(index_.labels[sample]);
      const double a = (label & 2) ? 1 : -1;
      const double b = (label & 1) ? 1 : -1;
      const bool audio = modality == 0;
      first_weight = (audio ? strong : weak) * a;
      second_weight = (audio ? weak : strong) * b;
    } else {
      first_weight = regression_gain * hidden_values(sample)[modality];
    }
    for (size_t i = 0; i < values.size(); ++i) values[i] = first_weight * first[i] + second_weight * second[i];
    return values;
  }

  // What all frames of a sample share, whatever its label.
  std::vector<double> nuisance(uint32_t modality, int64_t sample) const {
    const int64_t dim = index_.modalities[modality].dim;
    if (!classification()) return std::vector<double>(static_cast<size_t>(dim), 0.0);
    auto values = normals(kSampleOffset, dim, static_cast<uint32_t>(sample), modality);
    const auto shared = normals(kGroupOffset, dim, group_of_[sample], modality);
    for (size_t i = 0; i < values.size(); ++i) values[i] = sample_offset * values[i] + group_offset * shared[i];
    return values;
  }

  // Frames [begin, end) of one sample.
  void fill_sample(uint32_t modality, int64_t sample, int64_t begin, int64_t end, float* out) const {
    const int64_t dim = index_.modalities[modality].dim;
    const int64_t length = index_.modalities[modality].length(sample);
    const int64_t signal_frames = (length + 2) / 3;
    const int64_t signal_begin =
        below(draw(kSampleDraws, static_cast<uint32_t>(sample), modality)[1], length - signal_frames + 1);
    const auto extra = signal(modality, sample);
    const auto base = nuisance(modality, sample);
    for (int64_t frame = begin; frame < end; ++frame) {
      const bool has_signal = frame >= signal_begin && frame < signal_begin + signal_frames;
      for (int64_t column = 0; column < dim; column += 4) {  // every width is a multiple of four
        const auto words = draw(kFrameNoise, static_cast<uint32_t>(column / 4), static_cast<uint32_t>(sample),
                                (modality << 16) | static_cast<uint32_t>(frame));
        const auto first = random::normal_pair(words[0], words[1]);
        const auto second = random::normal_pair(words[2], words[3]);
        const double values[4] = {first[0], first[1], second[0], second[1]};
        for (int64_t i = 0; i < 4; ++i)
          *out++ = static_cast<float>(noise_ * values[i] + base[column + i] + (has_signal ? extra[column + i] : 0.0));
      }
    }
  }

  const SyntheticKind kind_;
  const double noise_;
  const uint64_t seed_;
  std::vector<uint32_t> group_of_;
  std::vector<std::vector<double>> directions_;
};

}  // namespace

std::unique_ptr<Dataset> make_synthetic(SyntheticKind kind, int64_t samples, double noise, uint64_t seed) {
  if (samples < 1 || samples > max_samples)
    throw Error(ExitCode::kBadConfig, "synthetic data: samples is " + std::to_string(samples) +
                                          "; it must be from 1 to " + std::to_string(max_samples) + ".");
  if (!(noise >= 0 && noise <= max_noise))
    throw Error(ExitCode::kBadConfig,
                "synthetic data: noise is " + std::to_string(noise) + "; it must be from 0 to 1000.");
  return std::make_unique<Synthetic>(kind, samples, noise, seed);
}

}  // namespace muster::data
