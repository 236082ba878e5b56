#pragma once

#include <cmath>

#include "lapidary/ops/cuda/device.cuh"

// Rows read and written four columns at a time.
namespace lapidary::ops::cuda {

// A matrix (or a vector: one row) as the router's kernels take it.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  Rows() = default;
  template <class Tensor>
  explicit Rows(const Tensor& t)
      : data(static_cast<T*>(t.data())), stride(t.rank() == 2 ? t.stride(0) : 0) {}
  __device__ T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
  // Every row can be read four elements at a time, if `columns` is a multiple of four too.
  bool quads() const {
    return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0 && stride % 4 == 0;
  }
};

// Four elements as they lie in memory: what is on its way needs no register for its wider form.
template <class T>
struct Quad;
template <>
struct Quad<float> {
  using Raw = float4;
  static __device__ float4 widen(const Raw& x) { return x; }
  static __device__ Raw round(const float4& x) { return x; }
};
template <>
struct Quad<device_bf16> {
  using Raw = uint2;
  static __device__ float4 widen(const Raw& x) {  // a bf16 is the upper half of a float
    return make_float4(__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000U),
                       __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000U));
  }
  static __device__ Raw round(const float4& x) {
    return make_uint2(bits(x.x) | bits(x.y) << 16, bits(x.z) | bits(x.w) << 16);
  }

 private:
  static __device__ unsigned bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
};

// The four elements at p, zeros from the `left`th on (left may be negative). kQuads: left is at
// least four or at most zero, and p is aligned to four elements.
template <bool kQuads, class T>
__device__ typename Quad<T>::Raw load_raw(const T* p, int64_t left) {
  using Raw = typename Quad<T>::Raw;
  Raw raw = {};
  if constexpr (kQuads) {
    if (left > 0) raw = *reinterpret_cast<const Raw*>(p);
  } else {
    float4 x = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    if (left > 0) x.x = to_float(p[0]);
    if (left > 1) x.y = to_float(p[1]);
    if (left > 2) x.z = to_float(p[2]);
    if (left > 3) x.w = to_float(p[3]);
    raw = Quad<T>::round(x);  // exact
  }
  return raw;
}
template <bool kQuads, class T>
__device__ float4 load_quad(const T* p, int64_t left) {
  return Quad<T>::widen(load_raw<kQuads>(p, left));
}
template <bool kQuads, class T>
__device__ void store_quad(T* p, const float4& x, int64_t left) {
  if constexpr (kQuads) {
    if (left > 0) *reinterpret_cast<typename Quad<T>::Raw*>(p) = Quad<T>::round(x);
  } else {
    if (left > 0) p[0] = from_float<T>(x.x);
    if (left > 1) p[1] = from_float<T>(x.y);
    if (left > 2) p[2] = from_float<T>(x.z);
    if (left > 3) p[3] = from_float<T>(x.w);
  }
}

__device__ inline float4 operator*(const float4& a, const float4& b) {
  return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
// sum + a b
__device__ inline float dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
__device__ inline float4 add_scaled(const float4& sum, float s, const float4& x) {
  return make_float4(fmaf(s, x.x, sum.x), fmaf(s, x.y, sum.y), fmaf(s, x.z, sum.z),
                     fmaf(s, x.w, sum.w));
}

inline float root_reciprocal(int64_t hidden) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden)));
}

}  // namespace lapidary::ops::cuda
