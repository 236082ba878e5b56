#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/train/optimizer.h"

// The golden cases below tests/golden/data: what the reference implementation computed in f64 on
// small models. A case is a Hugging Face directory with
//   inputs.safetensors    what goes in: input_ids, labels, attention_mask, packed_seq_ids, ...
//   expected.safetensors  logits [B, S, V], loss [1] (mean), hidden_states.i, grad.<parameter>
//   train.safetensors     20 AdamW steps: four batches, losses [20], grad_norms [20]
//   generate.safetensors  prompt [1, n], tokens [1, 16]: greedy decoding
namespace lapidary::test {

using gemma4::Gemma4ForConditionalGeneration;

// All tensors of a safetensors file: floats as f64, integers as i64.
class TensorFile {
 public:
  TensorFile() = default;
  explicit TensorFile(const std::string& path);
  bool has(const std::string& name) const { return tensors_.count(name) > 0; }
  const Tensor& get(const std::string& name) const;  // Error when absent
  ConstTensor find(const std::string& name) const;   // undefined when absent
  std::vector<std::string> names(const std::string& prefix) const;

 private:
  std::map<std::string, OwnedTensor> tensors_;
};

// Inputs of one call; the integer tensors are i64 [B, S], undefined where a case has none.
struct GoldenInputs {
  OwnedTensor input_ids, attention_mask, position_ids, packed_seq_ids, mm_token_type_ids, labels;

  static GoldenInputs from(const TensorFile& file, const std::string& prefix = "");
  // One row of these tokens; every token but the first is a target.
  static GoldenInputs of_tokens(const std::vector<int64_t>& ids);
  // Rows [first, first + count) of every tensor.
  GoldenInputs rows(int64_t first, int64_t count) const;
  // Columns [first, first + count) of one row, as a row of its own without padding or packing.
  GoldenInputs document(int64_t row, int64_t first, int64_t count) const;
  // The same with `left` and `right` padding tokens around each row and a mask that says so.
  GoldenInputs padded(int64_t left, int64_t right) const;

  gemma4::TextInputs text() const;
  int64_t targets() const;            // counted targets: shifted labels that are not -100
  std::vector<uint8_t> real() const;  // [B S]: 1 = no padding
};

class GoldenCase {
 public:
  explicit GoldenCase(const std::string& name);

  Gemma4ForConditionalGeneration model(Dtype dtype) const;  // f64 and c128 on ref, others on cpu
  TensorFile train() const { return TensorFile(directory + "/train.safetensors"); }
  TensorFile generate() const { return TensorFile(directory + "/generate.safetensors"); }

  // An error that the reference implementation itself has on this case in another precision.
  //   run: "float32 sdpa", "bfloat16 sdpa", "bfloat16 eager"
  //   metric: logits_l2, logits_max, loss_abs, grad_l2_median, grad_l2_worst
  double reference_error(const std::string& run, const std::string& metric) const;

  std::string name, directory;
  GoldenInputs inputs;
  TensorFile expected;
};

// Forward in memory of exactly the planned size.
gemma4::ForwardOutput run_forward(Gemma4ForConditionalGeneration& model,
                                  const gemma4::TextInputs& inputs,
                                  const gemma4::ForwardOptions& options = {});

// SUM of the loss over targets; gradients are added to Parameter::grad. Fresh arenas of exactly the
// planned size whose memory reads as NaN, so that a value used before it is written shows.
double run_loss(Gemma4ForConditionalGeneration& model, const GoldenInputs& inputs,
                const gemma4::LossOptions& options);

using Gradients = std::map<std::string, OwnedTensor>;
Gradients copy_gradients(Gemma4ForConditionalGeneration& model);
struct LossAndGradients {
  double loss = 0.0;  // mean
  Gradients gradients;
};
// Mean loss over the targets and its gradients, from zero.
LossAndGradients run_gradients(Gemma4ForConditionalGeneration& model, const GoldenInputs& inputs,
                               nn::Recompute policy = nn::Recompute::none);

struct Trajectory {
  std::vector<double> losses, grad_norms;
};
// `steps` steps of AdamW as the golden cases ran them: lr 1e-3, betas 0.9 and 0.95, eps 1e-8,
// weight decay 0.01, gradient norm clipped at 1; step s uses batch s mod 4. Norms before clipping.
// disturb (may be empty) sees the gradients of each step before they are used. options: how state
// is kept.
using Disturb = std::function<void(int64_t step, Parameter& parameter)>;
Trajectory run_training(Gemma4ForConditionalGeneration& model, const TensorFile& train,
                        int64_t steps, const Disturb& disturb = {}, AdamWOptions options = {});

// Errors over the real tokens of [B, S, ..] tensors.
struct TokenError {
  double peak = 0.0;  // largest |difference| / largest |expected|
  double l2 = 0.0;    // relative L2 norm
};
TokenError token_error(const ConstTensor& got, const ConstTensor& expected,
                       const std::vector<uint8_t>& real);

// Relative L2 errors of the gradients against expected "grad.<name>" tensors, in name order.
// complete: every parameter is expected; otherwise only the expected ones are looked at.
struct GradientErrors {
  std::vector<double> errors;
  double worst = 0.0, median = 0.0;
  std::string worst_name;
  std::vector<std::string> missing, surplus;  // expected but not computed; computed, not expected
};
GradientErrors gradient_errors(const Gradients& got, const TensorFile& expected);
// Largest relative L2 difference of two sets of gradients of the same model.
double worst_difference(const Gradients& got, const Gradients& expected);

std::vector<int64_t> integers(const ConstTensor& t);

}  // namespace lapidary::test
