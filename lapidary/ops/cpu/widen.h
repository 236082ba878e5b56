#pragma once

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/kernels.h"

namespace lapidary::ops::cpu {

// A vector of weights in float: the tensor's own data when it is float, else `to`, filled. Null for
// an undefined tensor.
inline const float* widen_vector(const char* op, const ConstTensor& w, float* to) {
  if (!w.defined()) return nullptr;
  if (w.dtype() == Dtype::f32) return w.as<float>();
  by_dtype(op, w.dtype(), [&]<class T>(T) {
    axpby_row(w.as<T>(), static_cast<const T*>(nullptr), to, w.dim(0), 1.0F, 0.0F);
  });
  return to;
}

}  // namespace lapidary::ops::cpu
