#include <algorithm>
#include <cmath>
#include <type_traits>

#include "lapidary/ops/adamw_step.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/device.cuh"

namespace lapidary::ops::cuda {
namespace {

// A warp takes one block of kQuantBlock elements. Lane l has the four from 4 l on and the four from
// 128 + 4 l on: every access of the warp is to memory without gaps, 16 bytes a lane of f32, and one
// Philox block serves the eight.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kEach = 8;
// Of threads: three or four, as registers allow, run at once on each of an H100's 132
// multiprocessors, so that these end together.
constexpr int64_t kMostBlocks = 12 * 132;
static_assert(kQuantBlock == 32 * kEach);

__device__ const CodeTable device_signed_codes = kSignedCodes;
__device__ const CodeTable device_unsigned_codes = kUnsignedCodes;

// A tensor by the row-major index i of its elements: offset (i / columns) stride + i % columns.
// Tensors without gaps count as one row.
template <class T>
struct Elements {
  T* data;
  int64_t stride;
};

template <class P, class S>
struct Work {
  Elements<P> param;
  Elements<float> master;  // data null: param is the master
  Elements<const float> grad;
  Elements<S> m, v;
  float* m_scale;
  float* v_scale;
  const double* scale;  // may be null
  int64_t n, columns;
  bool wide;                       // no gaps, and aligned for Four
  uint64_t seed, stream, counter;  // counter: rounding_counter() of the first element
  double grad_scale;
  AdamWStep c;
};

// The elements of a lane: number j has the index first + j / 4 * 128 + j % 4.
struct Place {
  int64_t first, n, columns;
  bool wide;  // Four can be used, and all are below n
  __device__ int64_t index(int j) const { return first + j / 4 * 128 + j % 4; }
};

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

// Elements from n on read as zero, and are not written.
template <class T, class X>
__device__ void read(const Elements<T>& t, const Place& at, X (&x)[kEach]) {
  if (at.wide) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto four = *reinterpret_cast<const Four<X>*>(t.data + at.first + half * 128);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[half * 4 + j] = four.x[j];
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int64_t i = at.index(j);
    x[j] = X{};
    if (i < at.n) x[j] = t.data[i / at.columns * t.stride + i % at.columns];
  }
}

template <class T>
__device__ void write(const Elements<T>& t, const Place& at, const T (&x)[kEach]) {
  if (at.wide) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Four<T> four;
#pragma unroll
      for (int j = 0; j < 4; ++j) four.x[j] = x[half * 4 + j];
      *reinterpret_cast<Four<T>*>(t.data + at.first + half * 128) = four;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int64_t i = at.index(j);
    if (i < at.n) t.data[i / at.columns * t.stride + i % at.columns] = x[j];
  }
}

template <class T>
__device__ void read_floats(const Elements<T>& t, const Place& at, float (&x)[kEach]) {
  std::remove_const_t<T> raw[kEach];
  read(t, at, raw);
#pragma unroll
  for (int j = 0; j < kEach; ++j) x[j] = to_float(raw[j]);
}

template <class T>
__device__ void write_floats(const Elements<T>& t, const Place& at, const float (&x)[kEach]) {
  T raw[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) raw[j] = from_float<T>(x[j]);
  write(t, at, raw);
}

// One of the moments of the warp's block, of which `scale` is the scale; values: of its codes.
template <class S>
__device__ void read_moment(const Elements<S>& t, const float* scale, const float* values,
                            const Place& at, float (&x)[kEach]) {
  if constexpr (std::is_same_v<S, uint8_t>) {
    uint8_t codes[kEach];
    read(t, at, codes);
    const float largest = *scale;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      x[j] = at.wide || at.index(j) < at.n ? largest * values[codes[j]] : 0.0F;
    }
  } else {
    read_floats(t, at, x);
  }
}

template <bool kSigned, class S>
__device__ void write_moment(const Elements<S>& t, float* scale, const Place& at,
                             const float (&x)[kEach]) {
  if constexpr (std::is_same_v<S, uint8_t>) {
    float largest = 0.0F;
#pragma unroll
    for (int j = 0; j < kEach; ++j) largest = fmaxf(largest, fabsf(x[j]));
    largest = warp_max(largest);
    const float inverse = inverse_scale(largest);
    uint8_t codes[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      codes[j] = kSigned ? signed_code(x[j] * inverse) : unsigned_code(x[j] * inverse);
    }
    write(t, at, codes);
    if (threadIdx.x % 32 == 0) *scale = inverse == 0.0F ? 0.0F : largest;
  } else {
    write_floats(t, at, x);
  }
}

template <class P, class S>
__device__ void update_block(const Work<P, S>& a, int64_t block, float factor,
                             const float* values) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Place at{block * kQuantBlock + lane * 4, a.n, a.columns,
                 a.wide && (block + 1) * kQuantBlock <= a.n};
  const bool own = a.master.data == nullptr;
  float g[kEach], w[kEach], m[kEach], v[kEach];
  read_floats(a.grad, at, g);
  if (own)
    read_floats(a.param, at, w);
  else
    read_floats(a.master, at, w);
  read_moment(a.m, a.m_scale + block, values, at, m);
  read_moment(a.v, a.v_scale + block, values + 256, at, v);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const float gradient = factor * g[j];
    m[j] = a.c.beta1 * m[j] + a.c.one_minus_beta1 * gradient;
    v[j] = a.c.beta2 * v[j] + a.c.one_minus_beta2 * gradient * gradient;
    const float size = sqrtf(v[j]) * a.c.v_factor + a.c.eps;
    w[j] = w[j] * a.c.decay - a.c.rate * m[j] / size;
  }
  write_moment<true>(a.m, a.m_scale + block, at, m);
  write_moment<false>(a.v, a.v_scale + block, at, v);
  if (!own) write(a.master, at, w);
  if (std::is_same_v<P, float> || !own) return write_floats(a.param, at, w);
  if constexpr (std::is_same_v<P, device_bf16>) {
    const PhiloxBlock bits =
        philox(a.seed, a.stream, a.counter + static_cast<uint64_t>(block * 32 + lane));
    P rounded[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      rounded[j] = __ushort_as_bfloat16(round_at_random(w[j], rounding_bits(bits, j)));
    }
    write(a.param, at, rounded);
  }
}

template <class P, class S>
__global__ void __launch_bounds__(kThreads, std::is_same_v<S, uint8_t> ? 3 : 4)
    adamw_kernel(const Work<P, S> a) {
  const double scale = a.scale == nullptr ? 1.0 : *a.scale;
  const auto factor = static_cast<float>(a.grad_scale * scale);
  if (!isfinite(factor)) return;
  constexpr bool kCodes = std::is_same_v<S, uint8_t>;
  __shared__ float values[kCodes ? 512 : 1];
  if constexpr (kCodes) {
    const int i = static_cast<int>(threadIdx.x);
    values[i] = device_signed_codes.value[i];
    values[256 + i] = device_unsigned_codes.value[i];
    __syncthreads();
  }
  const int64_t blocks = (a.n + kQuantBlock - 1) / kQuantBlock;
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  for (int64_t block = warp; block < blocks; block += int64_t{gridDim.x} * kWarps) {
    update_block(a, block, factor, values);
  }
}

bool all_aligned(const AdamWArgs& a) {
  return aligned16(a.param.data()) && aligned16(a.master.data()) && aligned16(a.grad.data()) &&
         aligned16(a.m.data()) && aligned16(a.v.data());
}

template <class P, class S>
void launch(Context& ctx, const AdamWArgs& a) {
  const bool flat = a.param.contiguous() && a.grad.contiguous() && a.m.contiguous() &&
                    a.v.contiguous() && (!a.master.defined() || a.master.contiguous());
  const auto stride = [flat](const ConstTensor& t) {
    return flat || !t.defined() ? 0 : t.rows().stride(0);
  };
  const int64_t n = a.param.numel();
  const Work<P, S> work{.param = {data<P>(a.param), stride(a.param)},
                        .master = {data<float>(a.master), stride(a.master)},
                        .grad = {data<float>(a.grad), stride(a.grad)},
                        .m = {data<S>(a.m), stride(a.m)},
                        .v = {data<S>(a.v), stride(a.v)},
                        .m_scale = data<float>(a.m_scale),
                        .v_scale = data<float>(a.v_scale),
                        .scale = data<double>(a.scale),
                        .n = n,
                        .columns = flat ? n : a.param.dim(-1),
                        .wide = flat && all_aligned(a),
                        .seed = a.seed,
                        .stream = a.stream,
                        .counter = rounding_counter(a.step, a.first_element),
                        .grad_scale = a.grad_scale,
                        .c = adamw_step(a, a.grad_scale)};
  const int64_t grid = std::min(ceil_div(n, kThreads * kEach), kMostBlocks);
  adamw_kernel<P, S><<<static_cast<unsigned>(grid), kThreads, 0, ctx.stream>>>(work);
  check_launch("adamw");
}

constexpr int kSumThreads = 256;

// out[block] = sum of the squares of every element that the block's threads come by.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    squares_kernel(const T* x, int64_t n, int64_t columns, int64_t stride, bool wide, double* out) {
  constexpr int kVector = 16 / sizeof(T), kAhead = 4;
  struct alignas(16) Vector {
    T x[kVector];
  };
  const int64_t thread = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * kSumThreads;
  double sum = 0.0;
  const auto add = [&sum](T element) {
    const double value = to_float(element);
    sum += value * value;
  };
  const int64_t vectors = wide ? n / kVector : 0;
  const auto* vector = reinterpret_cast<const Vector*>(x);
  int64_t i = thread;
  for (; i + (kAhead - 1) * threads < vectors; i += kAhead * threads) {
    Vector ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) ahead[k] = vector[i + k * threads];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) add(ahead[k].x[j]);
    }
  }
  for (; i < vectors; i += threads) {
    const Vector one = vector[i];
#pragma unroll
    for (int j = 0; j < kVector; ++j) add(one.x[j]);
  }
  for (int64_t j = vectors * kVector + thread; j < n; j += threads) {
    add(x[j / columns * stride + j % columns]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads)
    add_kernel(const double* parts, int count, double* sum) {
  double total = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSumThreads) total += parts[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *sum += total;
}

__global__ void clip_kernel(const double* sum, int64_t n, double max_norm, double* norm,
                            double* scale) {
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += sum[i];
  const double root = sqrt(squares);
  const double factor = max_norm > 0.0 ? fmin(1.0, max_norm / (root + 1e-6)) : 1.0;
  *norm = root;
  *scale = isfinite(root) ? factor : static_cast<double>(NAN);
}

}  // namespace

void adamw(Context& ctx, const AdamWArgs& a) {
  if (a.param.numel() == 0) return;
  by_dtype("adamw", a.param.dtype(), [&]<class P>(P) {
    switch (a.m.dtype()) {
      case Dtype::u8: return launch<P, uint8_t>(ctx, a);
      case Dtype::bf16: return launch<P, device_bf16>(ctx, a);
      default: return launch<P, float>(ctx, a);
    }
  });
}

void sum_of_squares(Context& ctx, const SumOfSquaresArgs& a) {
  const int64_t n = a.t.numel();
  if (n == 0) return;
  const ArenaScope memory(ctx.scratch);
  const int64_t blocks = sum_of_squares_scratch_bytes(a) / size_of(Dtype::f64);
  const Tensor parts = ctx.scratch.alloc(Dtype::f64, {blocks});
  const bool flat = a.t.contiguous();
  const ConstTensor view = flat ? a.t : a.t.rows();
  by_dtype("sum_of_squares", a.t.dtype(), [&]<class T>(T) {
    squares_kernel<T><<<static_cast<unsigned>(blocks), kSumThreads, 0, ctx.stream>>>(
        data<T>(view), n, flat ? n : view.dim(1), flat ? 0 : view.stride(0),
        flat && aligned16(view.data()), data<double>(parts));
  });
  check_launch("sum_of_squares");
  add_kernel<<<1, kSumThreads, 0, ctx.stream>>>(data<double>(parts), static_cast<int>(blocks),
                                                data<double>(a.sum));
  check_launch("sum_of_squares");
}

void clip_scale(Context& ctx, const ClipScaleArgs& a) {
  clip_kernel<<<1, 1, 0, ctx.stream>>>(data<double>(a.sum), a.sum.numel(), a.max_norm,
                                       data<double>(a.norm), data<double>(a.scale));
  check_launch("clip_scale");
}

}  // namespace lapidary::ops::cuda
