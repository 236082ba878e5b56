#pragma once

#include <algorithm>
#include <climits>

#include "lapidary/ops/cuda/device.cuh"

// Rows of f32 or bf16 in pieces of several elements.
namespace lapidary::ops::cuda {

// kCount consecutive elements of a row as they lie in memory, moved in accesses of up to 16 bytes.
// Indices are known at compile time once the loops over them are unrolled.
template <class T, int kCount>
class Chunk {
 public:
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static_assert(kBytes == 8 || kBytes % 16 == 0);

  __device__ void load(const T* from) {
    if constexpr (kBytes == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      words_[0] = v.x, words_[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const uint4 v = reinterpret_cast<const uint4*>(from)[i / 4];
        words_[i] = v.x, words_[i + 1] = v.y, words_[i + 2] = v.z, words_[i + 3] = v.w;
      }
    }
  }
  __device__ void store(T* to) const {
    if constexpr (kBytes == 8) {
      *reinterpret_cast<uint2*>(to) = make_uint2(words_[0], words_[1]);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        reinterpret_cast<uint4*>(to)[i / 4] =
            make_uint4(words_[i], words_[i + 1], words_[i + 2], words_[i + 3]);
      }
    }
  }
  __device__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(words_[i]);
    const uint32_t word = words_[i / 2];
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000U);
  }
  __device__ void set(const float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4) {
        words_[i] = __float_as_uint(x[i]);
      } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
        words_[i] =
            uint32_t{__bfloat16_as_ushort(pair.x)} | (uint32_t{__bfloat16_as_ushort(pair.y)} << 16);
      }
    }
  }

 private:
  static constexpr int kWords = kBytes / 4;
  uint32_t words_[kWords] = {};
};

// Rows that wider accesses do not fit go one element at a time.
template <class T>
class Chunk<T, 1> {
 public:
  static constexpr int kBytes = sizeof(T);

  __device__ void load(const T* from) { x_ = to_float(*from); }
  __device__ void store(T* to) const { *to = from_float<T>(x_); }
  __device__ float operator[](int) const { return x_; }
  __device__ void set(const float (&x)[1]) { x_ = x[0]; }

 private:
  float x_ = 0.0F;
};

template <class T, int kCount>
__device__ void store_chunk(T* to, const float (&x)[kCount]) {
  Chunk<T, kCount> chunk;
  chunk.set(x);
  chunk.store(to);
}

// How many elements a thread takes at a time where alignment allows: 16 bytes of the widest type,
// so that the lanes of a warp lie side by side in every tensor.
template <class... T>
constexpr int kWide = ((sizeof(T) == 4) || ...) ? 4 : 8;

// True when every row of t starts where Chunk<T, count> can be loaded. Undefined: nothing to load.
inline bool chunks_fit(const ConstTensor& t, int count) {
  if (!t.defined()) return true;
  const int64_t bytes = std::min<int64_t>(16, count * size_of(t.dtype()));
  if (reinterpret_cast<uintptr_t>(t.data()) % static_cast<uintptr_t>(bytes) != 0) return false;
  if (t.dim(-1) % count != 0) return false;
  for (int i = 0; i + 1 < t.rank(); ++i) {
    if (t.stride(i) * size_of(t.dtype()) % bytes != 0) return false;
  }
  return true;
}
template <class... Tensors>
bool all_chunks_fit(int count, const Tensors&... t) {
  return (chunks_fit(t, count) && ...);
}

// The rows of a matrix. data null: undefined.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  __device__ T* row(int64_t i) const { return data + i * stride; }
  __host__ __device__ bool defined() const { return data != nullptr; }
};
template <class T>
Rows<const T> rows_of(const ConstTensor& t) {
  if (!t.defined()) return {};
  return {data<T>(t), t.stride(0)};
}
template <class T>
Rows<T> rows_of(const Tensor& t) {
  if (!t.defined()) return {};
  return {data<T>(t), t.stride(0)};
}

// A vector of factors in either type; undefined: all ones.
struct Factors {
  const void* data = nullptr;
  bool wide = false;  // f32
  template <int kCount>
  __device__ void load(int64_t at, float (&out)[kCount]) const {
    if (data == nullptr) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[i] = 1.0F;
    } else if (wide) {
      load_as<float>(at, out);
    } else {
      load_as<device_bf16>(at, out);
    }
  }

 private:
  template <class T, int kCount>
  __device__ void load_as(int64_t at, float (&out)[kCount]) const {
    Chunk<T, kCount> chunk;
    chunk.load(static_cast<const T*>(data) + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = chunk[i];
  }
};
inline Factors factors_of(const char* op, const ConstTensor& t) {
  if (!t.defined()) return {};
  by_dtype(op, t.dtype(), [](auto) {});
  return {t.data(), t.dtype() == Dtype::f32};
}

// a / b for a >= 0, b > 0: a 64-bit division takes five times as long as a 32-bit one.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) != 0) return a / b;
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

// Elementwise kernels: thread threadIdx.x of a block takes kUnroll chunks, kFlatThreads apart.
constexpr int kFlatThreads = 256;
template <int kUnroll>
__device__ int64_t flat_chunk(int u) {
  return static_cast<int64_t>(blockIdx.x) * (kFlatThreads * kUnroll) + u * kFlatThreads +
         static_cast<int64_t>(threadIdx.x);
}
inline unsigned flat_blocks(int64_t chunks, int unroll) {
  return static_cast<unsigned>(ceil_div(chunks, static_cast<int64_t>(kFlatThreads) * unroll));
}

}  // namespace lapidary::ops::cuda
