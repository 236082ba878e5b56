#pragma once

#include <vector>

#include "lapidary/core/context.h"
#include "lapidary/core/parameter.h"

namespace lapidary {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
};

// AdamW over the trainable parameters of a model, with f32 moments and, for bf16 parameters, an f32
// master copy (f64 throughout on the reference backend). Weight decay acts on every parameter,
// norms and embeddings too, as torch's does.
class AdamW {
 public:
  // Parameters must keep their addresses and have gradient buffers; frozen ones are skipped.
  AdamW(Backend backend, const AdamWOptions& options, const std::vector<Parameter*>& parameters);

  // Square root of the sum of squares of all gradients, times grad_scale.
  double grad_norm(Context& ctx, double grad_scale = 1.0) const;
  // One update with gradients multiplied by grad_scale (1 / counted tokens, clipping).
  void step(Context& ctx, double lr, double weight_decay, double grad_scale);

  int64_t steps() const { return steps_; }
  int64_t num_trainable() const;  // elements
  int64_t state_bytes() const;

 private:
  struct Entry {
    Parameter* parameter;
    OwnedTensor m, v, master;
  };
  AdamWOptions options_;
  std::vector<Entry> entries_;
  int64_t steps_ = 0;
};

// Factor for the gradients so that their norm is at most max_norm: min(1, max_norm / (norm +
// 1e-6)). max_norm <= 0: no clipping.
double clip_factor(double grad_norm, double max_norm);

}  // namespace lapidary
