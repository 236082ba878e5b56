#pragma once

#include <cstdint>

#include "lapidary/core/dtype.h"

namespace lapidary::ops::cpu {

// c = a' b' (+ c when accumulate), with a' [m, k], b' [k, n], c [m, n]; sums in float, one
// rounding.
//   a is stored [m, k] ([k, m] when trans_a), b [k, n] ([n, k] when trans_b); ld*: elements from
//   one stored row to the next.  in: f32 or bf16, of a and b.  out: in or f32.
// Inside an OpenMP parallel region it runs on the calling thread alone. Throws Error.
struct Gemm {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  int64_t lda = 0;
  int64_t ldb = 0;
  int64_t ldc = 0;
  Dtype in = Dtype::f32;
  Dtype out = Dtype::f32;
  bool trans_a = false;
  bool trans_b = false;
  bool accumulate = false;
};
void gemm(const Gemm& g);

// The same in plain blocked loops: where oneDNN is missing or has no kernel for the processor.
void plain_gemm(const Gemm& g);

}  // namespace lapidary::ops::cpu
