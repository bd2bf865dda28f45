#include "core/data/synthetic_raw.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "base/sha256.h"
#include "core/random/philox.h"

namespace muster::data {
namespace {

// With draw(what, first, second, fourth) the four words of philox4x32(seed, {first, second, what, fourth}), u(word) and
// normals as core/random/philox.h makes them, below(word, n) = floor(word n / 2^32), and everything in double:
//
// A sample i and a modality m (audio 0, text 1):
//   length = shortest + below(W[0], longest - shortest + 1), where W = draw(kRawSample, i, m, 0); of text without its
//   first and last token. The signal stands on ceil(length / 3) rows from below(W[1], length - ceil(length / 3) + 1)
//   on. Bits of the class (synthetic.h): a = label >= 2, b = label odd; own and other: a and b for audio, b and a for
//   text. The own bit is shown wrong if u(W[2]) < 0.05, the other if u(W[3]) < 0.40.
//
// Audio at time t (rows), with P = draw(kRawSample, i, 0, 1):
//   0.1 sin(2 pi (h t / 16000 + u(P[2])))   with h = 100 + 30 times the group's number, from 0 in file order
//   + 0.05 noise times normal t mod 4 of draw(kRawNoise, t / 4, i, 0)
//   and within the signal  + 0.2 sin(2 pi (f t / 16000 + u(P[0]))) + 0.2 sin(2 pi (g t / 16000 + u(P[1]))),
//   f = 400 or 1200 by the shown a, g = 2000 or 3200 by the shown b; all clipped to [-1, 1].
//
// Text at place t between the first token, 2, and the last, 3, with R = draw(kRawWord, t, i, 0):
//   32 + below(R[0], 32), a word that means nothing, outside of the signal, or where u(R[1]) < noise / (noise + 9);
//   otherwise 4 + 14 which + 7 bit + below(R[0], 7), where the words of the signal show the own bit (which 0) and the
//   other (which 1) in turns, beginning with the own.
enum RawDraw : uint32_t { kRawSample = random::kSynthetic + 7, kRawNoise, kRawWord };

constexpr int64_t rate = 16000;
constexpr std::array<int64_t, 2> shortest{4800, 2}, longest{24000, 18};
constexpr std::array<int64_t, 2> own_tones{400, 1200}, other_tones{2000, 3200};
constexpr double own_wrong = 0.05, other_wrong = 0.40;
constexpr double tone_amplitude = 0.2, hum_amplitude = 0.1, noise_amplitude = 0.05;
constexpr int64_t first_token = 2, last_token = 3, first_word = 4, words_per_bit = 7, first_filler = 32, fillers = 32;
constexpr double two_pi = 6.283185307179586476925286766559;

class RawSynthetic : public Dataset {
 public:
  RawSynthetic(const DatasetIndex& features, double noise, uint64_t seed, const std::set<std::string>& without)
      : noise_(noise), seed_(seed), without_(without) {
    index_ = features;
    index_.name += "-raw";
    index_.modalities.clear();
    for (uint32_t m = 0; m < 2; ++m) {
      Modality modality;
      modality.name = m == 0 ? "audio" : "text";
      modality.dim = 1;
      modality.kind = m == 0 ? ModalityKind::kWaveform : ModalityKind::kTokens;
      modality.sample_rate = m == 0 ? rate : 0;
      modality.offsets.push_back(0);
      for (int64_t sample = 0; sample < index_.size(); ++sample)
        modality.offsets.push_back(modality.offsets.back() + plan_of(sample, m).length + (m == 0 ? 0 : 2));
      index_.modalities.push_back(std::move(modality));
    }
    for (const std::string& group : index_.groups) {
      if (group_names_.empty() || group_names_.back() != group) group_names_.push_back(group);
      group_of_.push_back(static_cast<int64_t>(group_names_.size()) - 1);
    }
  }

  void read_frames(int64_t modality, int64_t first, int64_t count, float* out) const override {
    const std::vector<int64_t>& offsets = index_.modalities.at(static_cast<size_t>(modality)).offsets;
    if (first < 0 || count < 0 || first > offsets.back() || count > offsets.back() - first)
      throw std::out_of_range("read_frames: no such frames");
    // No range is empty here, so the sample of a row is the last that starts at or before it.
    int64_t sample = std::upper_bound(offsets.begin(), offsets.end(), first) - offsets.begin() - 1;
    for (int64_t row = first; row < first + count; ++sample) {
      const int64_t begin = row - offsets[sample];
      const int64_t end = std::min(first + count, offsets[sample + 1]) - offsets[sample];
      if (modality == 0)
        fill_audio(sample, begin, end, out + (row - first));
      else
        fill_text(sample, begin, end, out + (row - first));
      row += end - begin;
    }
  }

  std::string content_hash() const override {
    std::string description = fmt::format("muster synthetic 1 {} samples={} noise={:.17g} seed={}", index_.name,
                                          index_.size(), noise_, seed_);
    for (const std::string& name : without_) description += " without=" + name;
    return sha256_of(description);
  }

  std::string source() const override { return "synthetic"; }

 private:
  struct Plan {
    int64_t length = 0;  // of text without the first and the last token
    int64_t signal_begin = 0, signal_end = 0;
    bool own_is_wrong = false, other_is_wrong = false;
  };

  std::array<uint32_t, 4> draw(RawDraw what, int64_t first, int64_t second, uint32_t fourth) const {
    return random::philox4x32(seed_, {static_cast<uint32_t>(first), static_cast<uint32_t>(second), what, fourth});
  }

  static int64_t below(uint32_t word, int64_t count) {
    return static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(count)) >> 32);
  }

  Plan plan_of(int64_t sample, uint32_t modality) const {
    const auto words = draw(kRawSample, sample, modality, 0);
    Plan plan;
    plan.length = shortest[modality] + below(words[0], longest[modality] - shortest[modality] + 1);
    const int64_t signal = (plan.length + 2) / 3;
    plan.signal_begin = below(words[1], plan.length - signal + 1);
    plan.signal_end = plan.signal_begin + signal;
    plan.own_is_wrong = random::uniform(words[2]) < own_wrong;
    plan.other_is_wrong = random::uniform(words[3]) < other_wrong;
    if (without_.count(modality == 0 ? "audio" : "text") != 0) plan.signal_end = plan.signal_begin;
    return plan;
  }

  bool bit_a(int64_t sample) const { return (static_cast<int>(index_.labels[sample]) & 2) != 0; }
  bool bit_b(int64_t sample) const { return (static_cast<int>(index_.labels[sample]) & 1) != 0; }

  // sin(2 pi (f t / rate + phase)). The whole turns are taken off first, exactly.
  static double tone(int64_t frequency, int64_t t, double phase) {
    return std::sin(two_pi * (static_cast<double>(frequency * t % rate) / static_cast<double>(rate) + phase));
  }

  // Values [begin, end) of one sample.
  void fill_audio(int64_t sample, int64_t begin, int64_t end, float* out) const {
    const Plan plan = plan_of(sample, 0);
    const auto phases = draw(kRawSample, sample, 0, 1);
    const int64_t own = own_tones[bit_a(sample) != plan.own_is_wrong];
    const int64_t other = other_tones[bit_b(sample) != plan.other_is_wrong];
    const int64_t hum = 100 + 30 * group_of_[sample];
    for (int64_t block = begin / 4; 4 * block < end; ++block) {
      const auto words = draw(kRawNoise, block, sample, 0);
      const auto early = random::normal_pair(words[0], words[1]), late = random::normal_pair(words[2], words[3]);
      const std::array<double, 4> normals{early[0], early[1], late[0], late[1]};
      for (int64_t t = std::max(begin, 4 * block); t < std::min(end, 4 * block + 4); ++t) {
        double value = hum_amplitude * tone(hum, t, random::uniform(phases[2])) +
                       noise_amplitude * noise_ * normals[static_cast<size_t>(t % 4)];
        if (t >= plan.signal_begin && t < plan.signal_end)
          value +=
              tone_amplitude * (tone(own, t, random::uniform(phases[0])) + tone(other, t, random::uniform(phases[1])));
        *out++ = static_cast<float>(std::clamp(value, -1.0, 1.0));
      }
    }
  }

  // Tokens [begin, end) of one sample.
  void fill_text(int64_t sample, int64_t begin, int64_t end, float* out) const {
    const Plan plan = plan_of(sample, 1);
    const int64_t own = bit_b(sample) != plan.own_is_wrong, other = bit_a(sample) != plan.other_is_wrong;
    for (int64_t token = begin; token < end; ++token) {
      const int64_t t = token - 1;
      int64_t id = token == 0 ? first_token : last_token;
      if (t >= 0 && t < plan.length) {
        const auto words = draw(kRawWord, t, sample, 0);
        const bool shows = t >= plan.signal_begin && t < plan.signal_end;
        const bool is_other = (t - plan.signal_begin) % 2 != 0;
        id = !shows || random::uniform(words[1]) < noise_ / (noise_ + 9)
                 ? first_filler + below(words[0], fillers)
                 : first_word + words_per_bit * (is_other ? 2 + other : own) + below(words[0], words_per_bit);
      }
      *out++ = static_cast<float>(id);
    }
  }

  const double noise_;
  const uint64_t seed_;
  const std::set<std::string> without_;
  std::vector<std::string> group_names_;  // in the order of the samples, which stand by group
  std::vector<int64_t> group_of_;
};

}  // namespace

std::unique_ptr<Dataset> make_raw_synthetic(const DatasetIndex& features, double noise, uint64_t seed,
                                            const std::set<std::string>& without) {
  return std::make_unique<RawSynthetic>(features, noise, seed, without);
}

}  // namespace muster::data
