#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace muster::models {

// How a parameter starts. Numbers come from philox keyed by (seed, the parameter's name, element), so a parameter's
// start depends on nothing else in the model.
struct Initial {
  enum class Kind { kConstant, kNormal, kUniform } kind = Kind::kConstant;
  double value = 0;       // the constant; the standard deviation; the bound of [-bound, bound)
  int64_t zero_row = -1;  // this row of a matrix is 0: the embedding of padding
  double center = 0;      // of a uniform distribution

  static Initial constant(double value) { return {Kind::kConstant, value}; }
  static Initial normal(double standard_deviation) { return {Kind::kNormal, standard_deviation}; }
  // Glorot and Bengio: bound sqrt(6 / (fan_in + fan_out)).
  static Initial xavier_uniform(int64_t fan_in, int64_t fan_out);
};

struct ParameterSpec {
  std::string name;  // dotted module path
  std::vector<int64_t> shape;
  Initial initial;
  // Rows [0, zero_gradient_rows) get a gradient of exactly 0: the key half of an attention bias, whose true gradient is
  // 0 but whose computed one is rounding noise that AdamW would turn into full steps.
  int64_t zero_gradient_rows = 0;
  // Of an encoder: its gradient is computed after everything else's (core/training/step.h).
  bool in_encoder = false;
  // false: no gradient, no moments; the value stays as it is.
  bool trained = true;
  double learning_rate_scale = 1;
};

enum class DecayScope { kMatrices, kAll };

// Elements [begin, end) of the flat buffers, which the optimizer treats alike.
struct ParameterGroup {
  int64_t begin = 0;
  int64_t end = 0;
  bool decayed = false;  // subject to weight decay
  double learning_rate_scale = 1;
};

// All trained parameters of a model in one flat buffer, and all gradients in another of the same layout. Each parameter
// is an autograd leaf that views the first, with .grad viewing the second: gradients accumulate in place, one
// all-reduce sums all of them, and the optimizer updates whole groups. Layout: first the model's own parameters, then
// those of its encoders; within each by learning rate, and there first those that weight decay acts on. Each parameter
// starts on a 64-byte boundary; the gaps hold zeros for ever. Parameters that are not trained lie in a buffer of their
// own.
class Parameters {
 public:
  // Fills in the starting values. dtype: float32 or float64. Throws Error(kInternal) on duplicate names.
  Parameters(const std::vector<ParameterSpec>& specs, DecayScope decay, at::ScalarType dtype, uint64_t seed);

  // These parameters and further ones, with the values that they have when they start.
  Parameters with(const std::vector<ParameterSpec>& more) const;

  // The leaf of that name. Throws Error(kInternal) for an unknown name.
  const at::Tensor& operator[](const std::string& name) const;

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  at::ScalarType dtype() const { return values_.scalar_type(); }
  int64_t count() const;          // parameters, without gaps
  int64_t trained_count() const;  // those of them that are trained

  at::Tensor values() const { return values_; }        // flat, of what is trained
  at::Tensor gradients() const { return gradients_; }  // flat, likewise
  at::Tensor frozen() const { return frozen_; }        // flat, of what is not trained
  at::Tensor zeros_like_values() const;                // another flat tensor, for what goes along with values()
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  // The encoders' part of the gradients is [encoders_begin(), values().numel()).
  int64_t encoders_begin() const { return encoders_begin_; }

  // Moves everything to `device`; leaves and flat tensors taken before are no longer this object's. Gradients start as
  // 0.
  void move_to(c10::Device device);

  void zero_gradients();
  // After backward passes: sets the gradients that are 0 by definition, and checks that autograd still writes into the
  // flat buffer. Throws Error(kInternal) otherwise.
  void finish_gradients();

  // Every trained parameter's part, by name and in its shape, of a flat tensor laid out as values(); views, sorted by
  // name.
  std::vector<std::pair<std::string, at::Tensor>> parts_of(const at::Tensor& flat) const;
  // The same, and the values of those that are not trained: all that weights files hold.
  std::vector<std::pair<std::string, at::Tensor>> all_parts(const at::Tensor& values) const;

  // Replaces all values. Strict: throws Error(kBadData) listing every missing and unknown name and every wrong shape;
  // then nothing is changed. `source` names the file in the message. Values are converted to this dtype.
  void load(const std::map<std::string, at::Tensor>& state, const std::string& source);

 private:
  // Makes leaves and their gradients as views of the flat tensors.
  void make_views();

  DecayScope decay_;
  uint64_t seed_;
  std::vector<ParameterSpec> specs_;
  std::vector<int64_t> starts_;  // of each spec, in the flat tensors or, of those not trained, in frozen_
  std::map<std::string, at::Tensor> leaves_;
  std::map<std::string, at::Tensor> gradient_views_;
  at::Tensor values_;
  at::Tensor gradients_;
  at::Tensor frozen_;
  std::vector<ParameterGroup> groups_;
  int64_t encoders_begin_ = 0;
};

}  // namespace muster::models
