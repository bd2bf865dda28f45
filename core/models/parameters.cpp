#include "core/models/parameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "base/error.h"
#include "base/huge_pages.h"
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
    for (int64_t i = start; i < std::min(count, start + 4); ++i)
      out[i] = spec.initial.value * numbers[i - start] + spec.initial.center;
  }
  if (spec.initial.zero_row >= 0) values.view(spec.shape).select(0, spec.initial.zero_row).zero_();
  return values;
}

// In huge pages, where there are any: products read whole matrices of parameters from memory.
at::Tensor flat_zeros(int64_t count, const at::TensorOptions& options) {
  at::Tensor flat = at::empty({count}, options);
  if (flat.is_cpu()) prefer_huge_pages(flat.mutable_data_ptr(), flat.nbytes());
  return flat.zero_();
}

[[noreturn]] void fail_twice(const std::string& name) {
  throw Error(ExitCode::kInternal, fmt::format("two parameters are named '{}'", name));
}

}  // namespace

Initial Initial::xavier_uniform(int64_t fan_in, int64_t fan_out) {
  return {Kind::kUniform, std::sqrt(6.0 / static_cast<double>(fan_in + fan_out))};
}

Parameters::Parameters(const std::vector<ParameterSpec>& specs, DecayScope decay, at::ScalarType dtype, uint64_t seed)
    : decay_(decay), seed_(seed), specs_(specs) {
  std::stable_sort(specs_.begin(), specs_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const int64_t boundary = kBoundaryBytes / static_cast<int64_t>(c10::elementSize(dtype));
  const auto extent = [&](const ParameterSpec& spec) {
    return (element_count(spec.shape) + boundary - 1) / boundary * boundary;
  };
  starts_.resize(specs_.size());
  // In the order of the layout; higher learning rates first.
  std::map<std::tuple<bool, double, bool>, std::vector<size_t>> groups;
  int64_t frozen = 0, end = 0;
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].trained) {
      const bool decayed = decay == DecayScope::kAll || specs_[i].shape.size() >= 2;
      groups[{specs_[i].in_encoder, -specs_[i].learning_rate_scale, !decayed}].push_back(i);
    } else {
      starts_[i] = frozen;
      frozen += extent(specs_[i]);
    }
  }
  bool in_encoders = false;
  for (const auto& [key, members] : groups) {
    const auto [in_encoder, negative_scale, not_decayed] = key;
    if (in_encoder && !in_encoders) encoders_begin_ = end;
    in_encoders = in_encoder;
    const int64_t begin = end;
    for (const size_t i : members) {
      starts_[i] = end;
      end += extent(specs_[i]);
    }
    groups_.push_back({begin, end, !not_decayed, -negative_scale});
  }
  if (!in_encoders) encoders_begin_ = end;
  values_ = flat_zeros(end, at::TensorOptions().dtype(dtype));
  frozen_ = flat_zeros(frozen, at::TensorOptions().dtype(dtype));
  for (size_t i = 0; i < specs_.size(); ++i)
    if (!(specs_[i].initial.kind == Initial::Kind::kConstant && specs_[i].initial.value == 0))
      (specs_[i].trained ? values_ : frozen_)
          .narrow(0, starts_[i], element_count(specs_[i].shape))
          .copy_(initial_values(specs_[i], seed));
  make_views();
}

Parameters Parameters::with(const std::vector<ParameterSpec>& more) const {
  std::vector<ParameterSpec> all = specs_;
  all.insert(all.end(), more.begin(), more.end());
  return Parameters(all, decay_, dtype(), seed_);
}

void Parameters::make_views() {
  gradients_ = zeros_like_values();
  leaves_.clear();
  gradient_views_.clear();
  for (size_t i = 0; i < specs_.size(); ++i) {
    const auto& spec = specs_[i];
    const int64_t count = element_count(spec.shape);
    at::Tensor leaf = (spec.trained ? values_ : frozen_).narrow(0, starts_[i], count).view(spec.shape).detach();
    if (!spec.trained) {
      if (!leaves_.emplace(spec.name, leaf).second) fail_twice(spec.name);
      continue;
    }
    leaf.requires_grad_();
    at::Tensor gradient = gradients_.narrow(0, starts_[i], count).view(spec.shape);
    leaf.mutable_grad() = gradient;
    if (!leaves_.emplace(spec.name, leaf).second) fail_twice(spec.name);
    gradient_views_.emplace(spec.name, gradient);
  }
}

void Parameters::move_to(c10::Device device) {
  if (values_.device() == device) return;
  values_ = values_.to(device);
  frozen_ = frozen_.to(device);
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

int64_t Parameters::trained_count() const {
  int64_t count = 0;
  for (const auto& spec : specs_)
    if (spec.trained) count += element_count(spec.shape);
  return count;
}

at::Tensor Parameters::zeros_like_values() const { return flat_zeros(values_.numel(), values_.options()); }

void Parameters::zero_gradients() { gradients_.zero_(); }

void Parameters::finish_gradients() {
  for (const auto& spec : specs_) {
    if (!spec.trained) continue;
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
    if (specs_[i].trained)
      parts.emplace_back(specs_[i].name,
                         flat.narrow(0, starts_[i], element_count(specs_[i].shape)).view(specs_[i].shape));
  return parts;
}

std::vector<std::pair<std::string, at::Tensor>> Parameters::all_parts(const at::Tensor& values) const {
  auto parts = parts_of(values);
  for (const auto& spec : specs_)
    if (!spec.trained) parts.emplace_back(spec.name, leaves_.at(spec.name));
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
