#include "lapidary/core/gpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/rows.cuh"

namespace lapidary::ops::cuda {
namespace {

constexpr int kUnroll = 2;

// out = alpha [s] a + beta b over rows of `per_row` chunks.
template <class A, class B, class Out>
struct Sum {
  Rows<const A> a;
  Rows<const B> b;
  Rows<Out> out;
  float alpha = 1.0F, beta = 0.0F;
  Factors s;  // one factor
  int64_t chunks = 0, per_row = 1;
};

template <class A, class B, class Out, int kVec>
__global__ void __launch_bounds__(kFlatThreads) sum_kernel(Sum<A, B, Out> p) {
  float s[1];
  p.s.load(0, s);
  const float alpha = p.alpha * s[0];
  Chunk<A, kVec> a[kUnroll];
  Chunk<B, kVec> b[kUnroll];
  int64_t row[kUnroll], column[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t chunk = flat_chunk<kUnroll>(u);
    row[u] = quotient(chunk, p.per_row);
    column[u] = (chunk - row[u] * p.per_row) * kVec;
    if (chunk >= p.chunks) continue;
    a[u].load(p.a.row(row[u]) + column[u]);
    if (p.b.defined()) b[u].load(p.b.row(row[u]) + column[u]);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (flat_chunk<kUnroll>(u) >= p.chunks) continue;
    float out[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      out[i] = alpha * a[u][i];
      if (p.b.defined()) out[i] += p.beta * b[u][i];
    }
    store_chunk(p.out.row(row[u]) + column[u], out);
  }
}

// One row of all elements where no tensor has gaps, so that any width goes in wide accesses.
template <class T>
T flattened(const T& t, bool flat) {
  return t.defined() && flat ? t.view({1, t.numel()}) : t;
}

template <class A, class B, class Out>
void run(Context& ctx, const char* op, const AxpbyArgs& args, const ConstTensor& s) {
  if (args.out.numel() == 0) return;
  const bool flat =
      args.a.contiguous() && args.out.contiguous() && (!args.b.defined() || args.b.contiguous());
  const ConstTensor a = flattened(args.a, flat), b = flattened(args.b, flat);
  const Tensor out = flattened(args.out, flat);
  const auto launch = [&]<int kVec>(std::integral_constant<int, kVec>) {
    const int64_t per_row = a.dim(1) / kVec, chunks = a.dim(0) * per_row;
    sum_kernel<A, B, Out, kVec><<<flat_blocks(chunks, kUnroll), kFlatThreads, 0, ctx.stream>>>(
        {.a = rows_of<A>(a),
         .b = rows_of<B>(b),
         .out = rows_of<Out>(out),
         .alpha = static_cast<float>(args.alpha),
         .beta = static_cast<float>(args.beta),
         .s = factors_of(op, s),
         .chunks = chunks,
         .per_row = per_row});
  };
  constexpr int kMost = kWide<A, B, Out>;
  if (all_chunks_fit(kMost, a, b, out)) {
    launch(std::integral_constant<int, kMost>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
  check_launch(op);
}

}  // namespace

void axpby(Context& ctx, const AxpbyArgs& a) {
  const Dtype b_type = a.b.defined() ? a.b.dtype() : a.a.dtype();
  by_dtype("axpby", a.a.dtype(), [&]<class A>(A) {
    by_dtype("axpby", b_type, [&]<class B>(B) {
      by_dtype("axpby", a.out.dtype(),
               [&]<class Out>(Out) { run<A, B, Out>(ctx, "axpby", a, {}); });
    });
  });
}

void scale_by(Context& ctx, const ScaleByArgs& a) {
  by_dtype("scale_by", a.a.dtype(),
           [&]<class T>(T) { run<T, T, T>(ctx, "scale_by", {.a = a.a, .out = a.out}, a.s); });
}

void fill_zero(Context& ctx, const Tensor& t) {
  if (t.bytes() > 0) gpu::set_bytes(t.data(), 0, t.bytes(), ctx.stream);
}

}  // namespace lapidary::ops::cuda
