#pragma once

#include <complex>
#include <string>

#include "lapidary/core/error.h"
#include "lapidary/core/tensor.h"

namespace lapidary::ops::ref {

// Calls f(T{}) with the scalar T of `dtype`.
template <class F>
void with_scalar(const char* op, Dtype dtype, F&& f) {
  if (dtype == Dtype::f64) return f(double{});
  if (dtype == Dtype::c128) return f(std::complex<double>{});
  fail(op, std::string("the reference computes in f64 or c128, not ") + name_of(dtype));
}

// What comparisons look at. Products never conjugate: every formula stays analytic, so that a
// derivative is the imaginary part of a value at a point moved by an imaginary step.
inline double real_part(double x) { return x; }
inline double real_part(const std::complex<double>& x) { return x.real(); }

// Row i of a matrix, entry (i, j) of a rank-3 tensor, (i, j, k) of a rank-4 one: the dense last
// dimension starts there.
template <class T>
const T* row(const ConstTensor& t, int64_t i) {
  return t.as<T>() + i * t.stride(0);
}
template <class T>
T* row(const Tensor& t, int64_t i) {
  return t.as<T>() + i * t.stride(0);
}
template <class T>
const T* row(const ConstTensor& t, int64_t i, int64_t j) {
  return row<T>(t, i) + j * t.stride(1);
}
template <class T>
T* row(const Tensor& t, int64_t i, int64_t j) {
  return row<T>(t, i) + j * t.stride(1);
}
template <class T>
const T* row(const ConstTensor& t, int64_t i, int64_t j, int64_t k) {
  return row<T>(t, i, j) + k * t.stride(2);
}
template <class T>
T* row(const Tensor& t, int64_t i, int64_t j, int64_t k) {
  return row<T>(t, i, j) + k * t.stride(2);
}

// The elements of a tensor that an operation lets be undefined, null then.
template <class T>
const T* elements(const ConstTensor& t) {
  return t.defined() ? t.as<T>() : nullptr;
}
template <class T>
T* elements(const Tensor& t) {
  return t.defined() ? t.as<T>() : nullptr;
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  T sum{};
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace lapidary::ops::ref
