#include "core/models/parameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "core/random/philox.h"

namespace muster::models {
namespace {

constexpr int64_t kBoundaryBytes = 64;

int64_t element_count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

uint32_t fnv1a(const std::string& text) {
  uint32_t hash = 2166136261u;
  for (const unsigned char c : text) hash = (hash ^ c) * 16777619u;
  return hash;
}

// Float64 whatever the parameter's dtype, so that float32 and float64 runs start from the same numbers up to rounding.
at::Tensor initial_values(const ParameterSpec& spec, uint64_t seed) {
  const int64_t count = element_count(spec.shape);
  at::Tensor values = at::empty({count}, at::kDouble);
  double* out = values.mutable_data_ptr<double>();
  if (spec.initial.kind == Initial::Kind::kConstant) {
    std::fill_n(out, count, spec.initial.value);
    return values;
  }
  const uint32_t name_hash = fnv1a(spec.name);
  for (int64_t start = 0; start < count; start += 4) {
    const auto words =
        random::philox4x32(seed, {static_cast<uint32_t>(start / 4), name_hash, random::kInitialWeights, 0});
    std::array<double, 4> numbers;
    if (spec.initial.kind == Initial::Kind::kNormal) {
      const auto first = random::normal_pair(words[0], words[1]);
      const auto second = random::normal_pair(words[2], words[3]);
      numbers = {first[0], first[1], second[0], second[1]};
    } else {
      for (int i = 0; i < 4; ++i) numbers[i] = 2 * random::uniform(words[i]) - 1;
    }
    for (int64_t i = start; i < std::min(count, start + 4); ++i) out[i] = spec.initial.value * numbers[i - start];
  }
  return values;
}

}  // namespace

Initial Initial::xavier_uniform(int64_t fan_in, int64_t fan_out) {
  return {Kind::kUniform, std::sqrt(6.0 / static_cast<double>(fan_in + fan_out))};
}

Parameters::Parameters(const std::vector<ParameterSpec>& specs, DecayScope decay, at::ScalarType dtype, uint64_t seed)
    : specs_(specs) {
  std::stable_sort(specs_.begin(), specs_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const int64_t boundary = kBoundaryBytes / static_cast<int64_t>(c10::elementSize(dtype));
  starts_.resize(specs_.size());
  int64_t end = 0;
  for (const bool decayed_pass : {true, false}) {
    for (size_t i = 0; i < specs_.size(); ++i) {
      const bool is_decayed = decay == DecayScope::kAll || specs_[i].shape.size() >= 2;
      if (is_decayed != decayed_pass) continue;
      starts_[i] = end;
      end += (element_count(specs_[i].shape) + boundary - 1) / boundary * boundary;
    }
    if (decayed_pass) decayed_ = end;
  }
  values_ = at::zeros({end}, at::TensorOptions().dtype(dtype));
  for (size_t i = 0; i < specs_.size(); ++i)
    values_.narrow(0, starts_[i], element_count(specs_[i].shape)).copy_(initial_values(specs_[i], seed));
  make_views();
}

void Parameters::make_views() {
  gradients_ = at::zeros_like(values_);
  leaves_.clear();
  gradient_views_.clear();
  for (size_t i = 0; i < specs_.size(); ++i) {
    const auto& spec = specs_[i];
    const int64_t count = element_count(spec.shape);
    at::Tensor leaf = values_.narrow(0, starts_[i], count).view(spec.shape).detach();
    leaf.requires_grad_();
    at::Tensor gradient = gradients_.narrow(0, starts_[i], count).view(spec.shape);
    leaf.mutable_grad() = gradient;
    if (!leaves_.emplace(spec.name, leaf).second)
      throw Error(ExitCode::kInternal, fmt::format("two parameters are named '{}'", spec.name));
    gradient_views_.emplace(spec.name, gradient);
  }
}

void Parameters::move_to(c10::Device device) {
  if (values_.device() == device) return;
  values_ = values_.to(device);
  make_views();
}

const at::Tensor& Parameters::operator[](const std::string& name) const {
  const auto found = leaves_.find(name);
  if (found == leaves_.end()) throw Error(ExitCode::kInternal, fmt::format("the model has no parameter '{}'", name));
  return found->second;
}

int64_t Parameters::count() const {
  int64_t count = 0;
  for (const auto& spec : specs_) count += element_count(spec.shape);
  return count;
}

void Parameters::zero_gradients() { gradients_.zero_(); }

void Parameters::finish_gradients() {
  for (const auto& spec : specs_) {
    at::Tensor& view = gradient_views_.at(spec.name);
    if (leaves_.at(spec.name).grad().data_ptr() != view.data_ptr())
      throw Error(ExitCode::kInternal,
                  fmt::format("autograd replaced the gradient of '{}' instead of adding to it", spec.name));
    if (spec.zero_gradient_rows > 0) view.narrow(0, 0, spec.zero_gradient_rows).zero_();
  }
}

std::vector<std::pair<std::string, at::Tensor>> Parameters::parts_of(const at::Tensor& flat) const {
  std::vector<std::pair<std::string, at::Tensor>> parts;
  for (size_t i = 0; i < specs_.size(); ++i)
    parts.emplace_back(specs_[i].name,
                       flat.narrow(0, starts_[i], element_count(specs_[i].shape)).view(specs_[i].shape));
  return parts;
}

void Parameters::load(const std::map<std::string, at::Tensor>& state, const std::string& source) {
  const auto shape_text = [](at::IntArrayRef shape) { return fmt::format("[{}]", fmt::join(shape.vec(), ", ")); };
  std::vector<std::string> problems;
  for (const auto& [name, leaf] : leaves_) {
    const auto found = state.find(name);
    if (found == state.end())
      problems.push_back(fmt::format("missing: {} {}", name, shape_text(leaf.sizes())));
    else if (found->second.sizes() != leaf.sizes())
      problems.push_back(fmt::format("wrong shape: {} is {}, the model needs {}", name,
                                     shape_text(found->second.sizes()), shape_text(leaf.sizes())));
    else if (!found->second.is_floating_point())
      problems.push_back(fmt::format("wrong dtype: {} is {}", name, c10::toString(found->second.scalar_type())));
  }
  for (const auto& [name, tensor] : state)
    if (leaves_.count(name) == 0)
      problems.push_back(fmt::format("not in the model: {} {}", name, shape_text(tensor.sizes())));
  if (!problems.empty())
    throw Error(ExitCode::kBadData,
                fmt::format("{}: the weights do not fit the model:\n  {}", source, join_first(problems, 100, "\n  ")));
  const at::NoGradGuard no_gradient;
  for (auto& [name, leaf] : leaves_) leaf.copy_(state.at(name));
}

}  // namespace muster::models
