#include "lapidary/ops/cuda/attention.h"

#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/device.cuh"

namespace lapidary::ops::cuda {
namespace {

constexpr int kDeltaWarps = 8;

struct Strides {
  int64_t batch, row, head;
  explicit Strides(const ConstTensor& t)
      : batch(t.stride(0)), row(t.stride(1)), head(t.stride(2)) {}
  __device__ int64_t at(int64_t b, int64_t s, int64_t h) const {
    return b * batch + s * row + h * head;
  }
  bool multiples_of(int64_t n) const { return batch % n == 0 && row % n == 0 && head % n == 0; }
};

template <class T>
struct DeltaArgs {
  const T* dout;
  const T* o;
  Strides dout_at, o_at;
  float* delta;  // [B, Q, S]
  int64_t rows, queries, heads;
  int size;
};

// One warp per row of o, N elements an access.
template <class T, int N>
__global__ void __launch_bounds__(32 * kDeltaWarps) delta_kernel(DeltaArgs<T> a) {
  struct alignas(N * sizeof(T)) Piece {
    T x[N];
  };
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kDeltaWarps + threadIdx.x / 32;
  if (row >= a.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t h = row % a.heads, position = row / a.heads;
  const int64_t s = position % a.queries, b = position / a.queries;
  const T* dout = a.dout + a.dout_at.at(b, s, h);
  const T* o = a.o + a.o_at.at(b, s, h);
  float sum = 0.0F;
  for (int d = lane * N; d < a.size; d += 32 * N) {
    const Piece x = *reinterpret_cast<const Piece*>(dout + d);
    const Piece y = *reinterpret_cast<const Piece*>(o + d);
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fmaf(to_float(x.x[i]), to_float(y.x[i]), sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) a.delta[(b * a.heads + h) * a.queries + s] = sum;
}

template <class T>
void compute_delta(Context& ctx, const AttentionBwdArgs& a, float* delta) {
  const DeltaArgs<T> args = {.dout = data<T>(a.dout),
                             .o = data<T>(a.o),
                             .dout_at = Strides(a.dout),
                             .o_at = Strides(a.o),
                             .delta = delta,
                             .rows = a.q.dim(0) * a.q.dim(1) * a.q.dim(2),
                             .queries = a.q.dim(1),
                             .heads = a.q.dim(2),
                             .size = static_cast<int>(a.q.dim(3))};
  constexpr int kWide = 16 / sizeof(T);
  const bool wide = args.size % kWide == 0 && args.dout_at.multiples_of(kWide) &&
                    args.o_at.multiples_of(kWide) && aligned16(args.dout) && aligned16(args.o);
  const auto blocks = static_cast<unsigned>(ceil_div(args.rows, kDeltaWarps));
  const auto kernel = wide ? delta_kernel<T, kWide> : delta_kernel<T, 1>;
  kernel<<<blocks, 32 * kDeltaWarps, 0, ctx.stream>>>(args);
  check_launch("attention_bwd");
}

}  // namespace

void attention(Context& ctx, const AttentionArgs& a) {
  if (a.o.numel() == 0) return;
  attention_mma_fits(a) ? attention_mma(ctx, a) : attention_plain(ctx, a);
}

void attention_bwd(Context& ctx, const AttentionBwdArgs& a) {
  if (a.q.numel() == 0) return;
  const ArenaScope scope(ctx.scratch);
  auto* delta = ctx.scratch.alloc(Dtype::f32, {a.q.dim(0), a.q.dim(2), a.q.dim(1)}).as<float>();
  by_dtype("attention_bwd", a.q.dtype(), [&]<class T>(T) { compute_delta<T>(ctx, a, delta); });
  attention_mma_bwd_fits(a) ? attention_mma_bwd(ctx, a, delta) : attention_plain_bwd(ctx, a, delta);
}

}  // namespace lapidary::ops::cuda
