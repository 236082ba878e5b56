#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// t[i] = mean + deviation * (normal first_element + i of Rng(seed, stream)), i in row-major order:
// t may be a part of a larger tensor, which begins at first_element there. Computed in
// double and rounded to the dtype of t (to bf16 by way of f32; the imaginary part of c128 is 0).
// t: contiguous, any rank, written.
// cpu and ref: the bits of a loop over Rng::normal(), on any number of threads. cuda: the same
// counters; its logarithm and cosine may differ in the last bits of the double.
struct FillNormalArgs {
  Tensor t;
  double mean = 0.0;
  double deviation = 1.0;
  uint64_t seed = 0;
  uint64_t stream = 0;
  int64_t first_element = 0;
};
void fill_normal(Context& ctx, const FillNormalArgs& args);

}  // namespace lapidary::ops
