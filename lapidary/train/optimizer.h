#pragma once

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "lapidary/checkpoint/state.h"
#include "lapidary/core/context.h"
#include "lapidary/core/parameter.h"

namespace lapidary {

// How the two moments are kept: f32 (f64 on the reference backend), bf16, or 8-bit codes with a
// scale for each 256 elements.
enum class MomentType { f32, bf16, int8 };
// "fp32", "bf16", "int8"; throws Error otherwise.
MomentType parse_moment_type(const std::string& text);

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  MomentType moments = MomentType::f32;
  bool master_weights = true;  // of bf16 parameters; false: they are rounded at random
  uint64_t seed = 0;           // of that rounding
};

// Where the elements of a parameter that this rank trains lie in the whole tensor.
struct ParameterShard {
  Shape whole;
  Interval part;       // the first part.size() elements of the parameter's value are these
  bool writes = true;  // false: another rank trains the same elements, and saves their state
};
using ShardOf = std::function<ParameterShard(const Parameter&)>;

// AdamW over the trainable parameters of a model. Weight decay acts on every parameter, norms and
// embeddings too, as torch's does. A step reads no number back from the GPU:
//   begin_step(); reset_squares(); add_squares() ..; clip(); step() or update() ..
// Gradients may come one by one: add_squares() and update() read Parameter::grad when they are
// called, and need that of no other parameter. A step whose gradient norm clip() finds not finite
// changes nothing.
class AdamW {
 public:
  // Parameters must keep their addresses. Those that are frozen, or never trained, are skipped.
  // first_element: where a parameter that is a shard begins in its whole tensor, which decides its
  // random rounding; empty: none is.
  using FirstElement = std::function<int64_t(const Parameter&)>;
  AdamW(Backend backend, const AdamWOptions& options, const std::vector<Parameter*>& parameters,
        const FirstElement& first_element = {});

  void begin_step();
  void reset_squares(Context& ctx);
  // Adds the squares of a gradient, or of all, to their sum.
  void add_squares(Context& ctx, const Parameter& parameter);
  void add_squares(Context& ctx);
  // From the sum of squares: the norm of the gradients, and what the updates of this step multiply
  // them by so that it is at most max_norm (<= 0: no limit). Without clip() they are as they are.
  void clip(Context& ctx, double max_norm);
  // [2] f64 on the backend, by Placement: the squares added so far. With shards on several ranks
  // they are summed over the ranks before clip(): Fsdp::sum_squares().
  const Tensor& squares() const { return squares_.get(); }
  // [1] f64 on the backend: as the last clip() or grad_norm() found it.
  ConstTensor norm() const { return norm_.get(); }

  // Parameters that are skipped may come too: nothing happens.
  void update(Context& ctx, Parameter& parameter, double lr, double weight_decay);
  void step(Context& ctx, double lr, double weight_decay);  // all

  // The norm of all gradients, now. Waits for the GPU; clip() may follow without more squares.
  double grad_norm(Context& ctx);

  // The optimiser's memory by name, to be saved or, where it lies, filled again: of each parameter
  // NAME.exp_avg and NAME.exp_avg_sq, with codes also NAME.exp_avg_scale and NAME.exp_avg_sq_scale
  // (one for each 256 elements), with master weights NAME.master. Views of it: good while the
  // optimiser lives. shard_of: of a parameter given to the constructor; unset: all of it. Error
  // when the blocks of codes do not begin at a multiple of 256.
  std::vector<StateTensor> state(const ShardOf& shard_of = {});
  void set_steps(int64_t steps) { steps_ = steps; }

  int64_t steps() const { return steps_; }
  int64_t num_trainable() const;  // elements
  int64_t state_bytes() const;

 private:
  struct Entry {
    Parameter* parameter;
    OwnedTensor m, v, m_scale, v_scale, master;
    uint64_t stream = 0;
    int64_t first_element = 0;  // of the whole parameter, where a shard begins
  };
  Entry make_entry(Context& ctx, Parameter& parameter, int64_t first_element) const;
  void find_norm(Context& ctx);
  void update(Context& ctx, const Entry& entry, double lr, double weight_decay);

  Backend backend_;
  AdamWOptions options_;
  std::vector<Entry> entries_;
  std::unordered_map<const Parameter*, size_t> entry_of_;
  OwnedTensor squares_, norm_, scale_;
  std::optional<double> max_norm_;  // of clip() in this step
  int64_t steps_ = 0;
};

}  // namespace lapidary
