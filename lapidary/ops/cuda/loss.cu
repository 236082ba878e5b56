#include <algorithm>

#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/device.cuh"
#include "lapidary/ops/cuda/loss_rows.cuh"
#include "lapidary/ops/cuda/plan_loss.h"

namespace lapidary::ops::cuda {
namespace {

// loss += the sum of n values; one block, fixed order.
__global__ void add_losses(const double* losses, int64_t n, double* loss) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss += sum;
}

// Rows of x, zeros for those without target: whatever stands there must not reach dw. A block per
// row; `width` pieces of type P make a row.
template <class P>
__global__ void copy_counted(const P* x, int64_t stride, const int64_t* targets, P* rows,
                             int64_t width) {
  const bool counted = targets[blockIdx.x] != kIgnored;
  for (int64_t j = threadIdx.x; j < width; j += blockDim.x) {
    rows[blockIdx.x * width + j] = counted ? x[blockIdx.x * stride + j] : P{};
  }
}

template <class P>
void launch_copy(Context& ctx, const ConstTensor& x, const int64_t* targets, void* rows) {
  const int64_t size = sizeof(P), element = size_of(x.dtype());
  copy_counted<P><<<static_cast<unsigned>(x.dim(0)), 256, 0, ctx.stream>>>(
      data<P>(x), x.stride(0) * element / size, targets, static_cast<P*>(rows),
      x.dim(1) * element / size);
  check_launch("linear_cross_entropy");
}

void copy_rows(Context& ctx, const ConstTensor& x, const int64_t* targets, void* rows) {
  const int64_t element = size_of(x.dtype());
  const bool wide = aligned16(x.data()) && aligned16(rows) && x.stride(0) * element % 16 == 0 &&
                    x.dim(1) * element % 16 == 0;
  if (wide) return launch_copy<uint4>(ctx, x, targets, rows);
  by_dtype("linear_cross_entropy", x.dtype(),
           [&]<class T>(T) { launch_copy<T>(ctx, x, targets, rows); });
}

// z = cap tanh(l / cap) for rows of `width` pieces of kWide elements. A grid of columns and rows.
template <class T, int kWide>
__global__ void softcap_rows(T* logits, int64_t rows, int64_t stride, int64_t width, float cap,
                             float inverse_cap) {
  struct alignas(sizeof(T) * kWide) Piece {
    T values[kWide];
  };
  const int64_t j = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (j >= width) return;
  for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) {
    Piece* at = reinterpret_cast<Piece*>(logits + i * stride) + j;
    Piece piece = *at;
#pragma unroll
    for (T& value : piece.values) {
      value = from_float<T>(cap_of<true>(to_float(value), cap, inverse_cap).z);
    }
    *at = piece;
  }
}

template <class T, int kWide>
void launch_softcap(Context& ctx, const SoftcapArgs& a, int64_t rows, int64_t columns) {
  const int64_t width = columns / kWide;
  const dim3 grid(static_cast<unsigned>(ceil_div(width, 256)),
                  static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
  softcap_rows<T, kWide><<<grid, 256, 0, ctx.stream>>>(data<T>(a.logits), rows, a.logits.stride(0),
                                                       width, static_cast<float>(a.softcap),
                                                       static_cast<float>(1.0 / a.softcap));
  check_launch("softcap");
}

}  // namespace

void softcap(Context& ctx, const SoftcapArgs& a) {
  if (a.logits.numel() == 0 || a.softcap == 0.0) return;
  const bool dense = a.logits.contiguous();
  const int64_t rows = dense ? 1 : a.logits.dim(0);
  const int64_t columns = dense ? a.logits.numel() : a.logits.dim(1);
  by_dtype("softcap", a.logits.dtype(), [&]<class T>(T) {
    constexpr int kWide = 16 / sizeof(T);
    const bool wide = aligned16(a.logits.data()) && columns % kWide == 0 &&
                      (rows == 1 || a.logits.stride(0) % kWide == 0);
    if (wide) {
      launch_softcap<T, kWide>(ctx, a, rows, columns);
    } else {
      launch_softcap<T, 1>(ctx, a, rows, columns);
    }
  });
}

void linear_cross_entropy(Context& ctx, const LinearCrossEntropyArgs& a) {
  const int64_t tokens = a.x.dim(0);
  if (tokens == 0) return;
  const LossPlan plan = LossPlan::of(a);
  const ArenaScope scope(ctx.scratch);
  double* losses = ctx.scratch.alloc(Dtype::f64, {tokens}).as<double>();
  void* logits = ctx.scratch.alloc(Dtype::f32, {plan.chunk, plan.stride}).data();
  void* rows =
      plan.copies_rows ? ctx.scratch.alloc(a.x.dtype(), {plan.chunk, a.x.dim(1)}).data() : nullptr;
  const auto* targets = data<int64_t>(a.targets);
  for (int64_t first = 0; first < tokens; first += plan.chunk) {
    const int64_t count = std::min(plan.chunk, tokens - first);
    const auto products = ChunkProducts::of(a, plan, first, count, logits, rows);
    if (rows != nullptr) copy_rows(ctx, a.x.slice(0, first, count), targets + first, rows);
    cuda::matmul(ctx, products.logits);
    loss_rows(ctx, {.logits = static_cast<float*>(logits),
                    .stride = plan.stride,
                    .vocabulary = a.w.dim(0),
                    .targets = targets + first,
                    .losses = losses + first,
                    .cap = static_cast<float>(a.softcap),
                    .inverse_cap = a.softcap == 0.0 ? 0.0F : static_cast<float>(1.0 / a.softcap),
                    .grad_scale = a.grad_scale,
                    .count = count,
                    .dtype = a.x.dtype(),
                    .gradient = a.dx.defined()});
    if (a.dx.defined()) cuda::matmul(ctx, products.dx);
    if (a.dw.defined()) cuda::matmul(ctx, products.dw);
  }
  add_losses<<<1, 1024, 0, ctx.stream>>>(losses, tokens, data<double>(a.loss));
  check_launch("linear_cross_entropy");
}

}  // namespace lapidary::ops::cuda
