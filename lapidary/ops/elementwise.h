#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// out = alpha a + beta b; b undefined: out = alpha a. Any dtypes of the f32/bf16 or f64/c128
// family, computed in accumulate_dtype, rounded once. out may alias a or b. Rank 2, any row stride.
struct AxpbyArgs {
  ConstTensor a;
  ConstTensor b = {};
  double alpha = 1.0;
  double beta = 1.0;
  Tensor out;
};
void axpby(Context& ctx, const AxpbyArgs& args);

// out = s a, with s [1] a tensor (layer_scalar), of the dtype of a or narrower.  out may alias a.
struct ScaleByArgs {
  ConstTensor a;
  ConstTensor s;
  Tensor out;
};
void scale_by(Context& ctx, const ScaleByArgs& args);

void fill_zero(Context& ctx, const Tensor& t);

}  // namespace lapidary::ops
