#pragma once

#include <string>

#include "lapidary/core/dtype.h"
#include "lapidary/core/error.h"

namespace lapidary::ops::cpu {

// f(T{}) with T = float or bf16.
template <class F>
void by_dtype(const char* op, Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32: return f(float{});
    case Dtype::bf16: return f(bf16{});
    default:
      fail(op, std::string("cannot compute in ") + name_of(dtype) + " on the cpu",
           "use fp32 or bf16");
  }
}

// The data of an optional tensor, null where it is undefined.
template <class T, class Tensor>
auto data_or_null(const Tensor& t) -> decltype(t.template as<T>()) {
  return t.defined() ? t.template as<T>() : nullptr;
}

}  // namespace lapidary::ops::cpu
