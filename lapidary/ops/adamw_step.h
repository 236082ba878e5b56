#pragma once

namespace lapidary::ops {

struct AdamWArgs;

// The constants of one AdamW step as the f32 backends use them, prepared in double.
struct AdamWStep {
  float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay;     // 1 - lr wd
  float rate;      // lr / (1 - b1^t)
  float v_factor;  // 1 / sqrt(1 - b2^t)
  float eps;
};
AdamWStep adamw_step(const AdamWArgs& args, double grad_scale);

}  // namespace lapidary::ops
