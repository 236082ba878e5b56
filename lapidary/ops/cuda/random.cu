#include "lapidary/ops/random.h"

#include <algorithm>
#include <numbers>

#include "lapidary/core/philox.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/device.cuh"

namespace lapidary::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

// Rng::normal().
__device__ double normal(uint64_t seed, uint64_t stream, uint64_t counter) {
  const double u = 1.0 - philox_uniform(seed, stream, counter);
  const double angle = 2.0 * std::numbers::pi * philox_uniform(seed, stream, counter + 1);
  return sqrt(-2.0 * log(u)) * cos(angle);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_normal_kernel(T* t, int64_t n, double mean, double deviation, uint64_t seed,
                       uint64_t stream, int64_t first_element) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    double value = mean;
    if (deviation != 0.0) {
      const double z =
          normal(seed, stream, static_cast<uint64_t>(first_element + i) * kCountersPerNormal);
      // Two roundings, as the host has them.
      value = __dadd_rn(mean, __dmul_rn(deviation, z));
    }
    t[i] = from_float<T>(static_cast<float>(value));
  }
}

}  // namespace

void fill_normal(Context& ctx, const FillNormalArgs& a) {
  const int64_t n = a.t.numel();
  by_dtype("fill_normal", a.t.dtype(), [&]<class T>(T) {
    if (n == 0) return;
    const auto blocks = static_cast<unsigned>(std::min(ceil_div(n, kThreads), kMaxBlocks));
    fill_normal_kernel<<<blocks, kThreads, 0, ctx.stream>>>(data<T>(a.t), n, a.mean, a.deviation,
                                                            a.seed, a.stream, a.first_element);
    check_launch("fill_normal");
  });
}

}  // namespace lapidary::ops::cuda
