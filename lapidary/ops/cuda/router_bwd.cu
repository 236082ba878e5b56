#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/moe_scratch.h"
#include "lapidary/ops/cuda/moe_sort.cuh"
#include "lapidary/ops/cuda/router.cuh"

// A token has a gradient for the logits of its K experts only: every product here goes over the
// chosen pairs, K / E of the dense one. du gathers rows of proj by token; the gradients of
// parameters gather rows of u by expert, from pairs sorted as moe_sort sorts them.
namespace lapidary::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPairThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 128;  // of a block of expert_sums_kernel: a quad per lane
constexpr unsigned kWarp = 0xffffffffU;
constexpr int64_t kMaxSharedBytes = 96 * 1024;

template <class T>
struct PairArgs {
  Rows<const int32_t> indices, pair_row;
  Rows<const float> shares;
  const float* drow_weight;
  const float* rstd;
  const T* per_expert_scale;
  int64_t tokens;
  int top_k, experts;
  float factor;      // H^-1/2
  float* dlogits;    // [T, K], times factor
  float* z_weights;  // [T, K] dlogits rstd, or null
  float* dscales;    // [T, K] dw share, or null
};

// A thread per token. Foreign experts have no gradient.
template <class T>
__global__ void __launch_bounds__(kPairThreads) pair_gradients_kernel(PairArgs<T> a) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kPairThreads + threadIdx.x;
  if (t >= a.tokens) return;
  const auto dweight = [&](int k) {
    const int row = *a.pair_row.at(t, k);
    return row < 0 ? 0.0F : a.drow_weight[row];
  };
  const auto scale = [&](int k) {
    const int e = *a.indices.at(t, k);
    return e >= 0 && e < a.experts ? to_float(a.per_expert_scale[e]) : 0.0F;
  };
  float* dlogits = a.dlogits + t * a.top_k;
  float mean = 0.0F;
#pragma unroll 8
  for (int k = 0; k < a.top_k; ++k) {
    const float dw = dweight(k), share = *a.shares.at(t, k), dshare = dw * scale(k);
    mean = fmaf(dshare, share, mean);
    dlogits[k] = dshare;
    if (a.dscales != nullptr) a.dscales[t * a.top_k + k] = dw * share;
  }
  for (int k = 0; k < a.top_k; ++k) {
    const float dlogit = a.factor * *a.shares.at(t, k) * (dlogits[k] - mean);
    dlogits[k] = dlogit;
    if (a.z_weights != nullptr) a.z_weights[t * a.top_k + k] = dlogit * a.rstd[t];
  }
}

template <class U, class T>
struct InputArgs {
  Rows<const U> u;
  Rows<const T> scale, proj;
  Rows<const int32_t> indices;
  const float* rstd;
  const float* dlogits;
  Rows<U> du;
  int64_t hidden;
  int top_k, experts;
  bool cached;  // the gradient of n fits into shared memory
};

// Gradient of n: sum_k dlogit_k proj[e_k], times scale. experts, dlogits: of the token.
template <bool kQuads, class U, class T>
__device__ float4 normed_gradient(const InputArgs<U, T>& a, const int* experts,
                                  const float* dlogits, int64_t column) {
  const int64_t left = a.hidden - column;
  float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 8
  for (int k = 0; k < a.top_k; ++k) {
    sum = add_scaled(sum, dlogits[k], load_quad<kQuads>(a.proj.at(experts[k], column), left));
  }
  return sum * load_quad<kQuads>(a.scale.at(0, column), left);
}

// A block per token: du += r (g - u r mean), g the gradient of n, mean = r sum g u / H.
template <class U, class T, bool kQuads>
__global__ void __launch_bounds__(kThreads) input_gradient_kernel(InputArgs<U, T> a) {
  // [H up to a quad, if cached], then K gradients and K ids
  extern __shared__ __align__(16) float shared[];
  const int64_t t = blockIdx.x;
  const int64_t quads = (a.hidden + 3) / 4;
  auto* cache = reinterpret_cast<float4*>(shared);
  float* dlogits = shared + (a.cached ? quads * 4 : 0);
  int* experts = reinterpret_cast<int*>(dlogits + a.top_k);
  for (int k = static_cast<int>(threadIdx.x); k < a.top_k; k += kThreads) {
    const int e = *a.indices.at(t, k);
    const bool known = e >= 0 && e < a.experts;
    experts[k] = known ? e : 0;
    dlogits[k] = known ? a.dlogits[t * a.top_k + k] : 0.0F;
  }
  __syncthreads();
  float sum = 0.0F;
  for (int64_t quad = threadIdx.x; quad < quads; quad += kThreads) {
    const int64_t column = quad * 4;
    const float4 g = normed_gradient<kQuads>(a, experts, dlogits, column);
    sum = dot(g, load_quad<kQuads>(a.u.at(t, column), a.hidden - column), sum);
    if (a.cached) cache[quad] = g;  // for this thread itself
  }
  const float r = a.rstd[t];
  const float mean = block_sum(sum) * r / static_cast<float>(a.hidden);
  const float slope = -r * r * mean;
  for (int64_t quad = threadIdx.x; quad < quads; quad += kThreads) {
    const int64_t column = quad * 4, left = a.hidden - column;
    const float4 g = a.cached ? cache[quad] : normed_gradient<kQuads>(a, experts, dlogits, column);
    float4 du = load_quad<kQuads>(a.du.at(t, column), left);
    du = add_scaled(du, r, g);
    du = add_scaled(du, slope, load_quad<kQuads>(a.u.at(t, column), left));
    store_quad<kQuads>(a.du.at(t, column), du, left);
  }
}

template <class U, class T>
struct SumArgs {
  Rows<const U> u;
  Rows<const T> scale;
  const int32_t* offsets;
  const int32_t* row_token;
  const float* row_weight;
  int64_t hidden;
  float* sums;        // [E, H], written, or null
  Rows<float> dproj;  // += scale sums; data may be null
};

// This warp's part of sum row_weight u[row_token] over the rows of an expert, four columns per
// lane: every kWarps-th batch of 32 rows.
template <bool kQuads, class U, class T>
__device__ float4 part_of_sum(const SumArgs<U, T>& a, int begin, int end, int64_t column) {
  constexpr int kBatch = 8;  // rows that are on their way at a time
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t left = a.hidden - column;
  float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  for (int64_t first = int64_t{begin} + warp * 32; first < end; first += kWarps * 32) {
    const int64_t row = first + lane;
    const int token = row < end ? a.row_token[row] : 0;
    const float weight = row < end ? a.row_weight[row] : 0.0F;
    const int rows = static_cast<int>(end - first < 32 ? end - first : 32);
    for (int i = 0; i < rows; i += kBatch) {
      typename Quad<U>::Raw raw[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int64_t t = __shfl_sync(kWarp, token, i + j);
        raw[j] = load_raw<kQuads>(a.u.at(t, column), i + j < rows ? left : 0);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        sum = add_scaled(sum, __shfl_sync(kWarp, weight, i + j), Quad<U>::widen(raw[j]));
      }
    }
  }
  return sum;
}

// A block per expert and kColumns columns; the warps' parts are added in their order.
template <class U, class T, bool kQuads>
__global__ void __launch_bounds__(kThreads) expert_sums_kernel(SumArgs<U, T> a) {
  __shared__ __align__(16) float parts[kWarps][kColumns];
  const int64_t expert = blockIdx.x;
  const int64_t tile = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  *reinterpret_cast<float4*>(&parts[warp][lane * 4]) =
      part_of_sum<kQuads>(a, a.offsets[expert], a.offsets[expert + 1], tile + lane * 4);
  __syncthreads();
  const int64_t column = tile + threadIdx.x;
  if (threadIdx.x >= kColumns || column >= a.hidden) return;
  float sum = 0.0F;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += parts[w][threadIdx.x];
  if (a.sums != nullptr) a.sums[expert * a.hidden + column] = sum;
  if (a.dproj.data != nullptr) {
    float& to = *a.dproj.at(expert, column);
    to = fmaf(to_float(*a.scale.at(0, column)), sum, to);
  }
}

// dscale += sum_e proj[e] sums[e]: what sum_t dz n is, with the tokens summed first. A block per 32
// columns; every kWarps-th expert per warp.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_gradient_kernel(Rows<const T> proj, const float* sums, int64_t experts, int64_t hidden,
                          float* dscale) {
  __shared__ float parts[kWarps][32];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0F;
  if (column < hidden) {
#pragma unroll 8
    for (int64_t e = warp; e < experts; e += kWarps) {
      sum = fmaf(to_float(*proj.at(e, column)), sums[e * hidden + column], sum);
    }
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= hidden) return;
  sum = 0.0F;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += parts[w][lane];
  dscale[column] += sum;
}

// A block per expert.
__global__ void __launch_bounds__(kPairThreads)
    expert_scale_gradient_kernel(const int32_t* offsets, const int32_t* row_pair,
                                 const float* dscales, float* dper_expert_scale) {
  float sum = 0.0F;
  const int64_t end = offsets[blockIdx.x + 1];
  for (int64_t row = offsets[blockIdx.x] + static_cast<int64_t>(threadIdx.x); row < end;
       row += kPairThreads) {
    sum += dscales[row_pair[row]];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) dper_expert_scale[blockIdx.x] += sum;
}

template <class T>
void pair_gradients(cudaStream_t stream, const RouterBwdArgs& a, const RouterBwdScratch& s) {
  const bool sorts = RouterBwdScratch::sorts(a);
  const auto blocks = static_cast<unsigned>(ceil_div(a.u.dim(0), kPairThreads));
  pair_gradients_kernel<T>
      <<<blocks, kPairThreads, 0, stream>>>({.indices = Rows<const int32_t>(a.indices),
                                             .pair_row = Rows<const int32_t>(a.pair_row),
                                             .shares = Rows<const float>(a.shares),
                                             .drow_weight = data<float>(a.drow_weight),
                                             .rstd = data<float>(a.rstd),
                                             .per_expert_scale = data<T>(a.per_expert_scale),
                                             .tokens = a.u.dim(0),
                                             .top_k = static_cast<int>(a.indices.dim(1)),
                                             .experts = static_cast<int>(a.proj.dim(0)),
                                             .factor = root_reciprocal(a.u.dim(1)),
                                             .dlogits = s.dlogits,
                                             .z_weights = sorts ? s.z_weights : nullptr,
                                             .dscales = sorts ? s.dscales : nullptr});
  check_launch("router_bwd");
}

template <class U, class T>
void input_gradient(cudaStream_t stream, const RouterBwdArgs& a, const RouterBwdScratch& s) {
  InputArgs<U, T> args = {.u = Rows<const U>(a.u),
                          .scale = Rows<const T>(a.scale),
                          .proj = Rows<const T>(a.proj),
                          .indices = Rows<const int32_t>(a.indices),
                          .rstd = data<float>(a.rstd),
                          .dlogits = s.dlogits,
                          .du = Rows<U>(a.du),
                          .hidden = a.u.dim(1),
                          .top_k = static_cast<int>(a.indices.dim(1)),
                          .experts = static_cast<int>(a.proj.dim(0)),
                          .cached = false};
  const int64_t row = ceil_div(args.hidden, 4) * 16;
  args.cached = row <= kMaxSharedBytes;
  const int64_t bytes = (args.cached ? row : 0) + int64_t{8} * args.top_k;
  const bool quads = args.hidden % 4 == 0 && args.u.quads() && args.scale.quads() &&
                     args.proj.quads() && args.du.quads();
  const auto kernel =
      quads ? input_gradient_kernel<U, T, true> : input_gradient_kernel<U, T, false>;
  if (bytes > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
  }
  kernel<<<static_cast<unsigned>(a.u.dim(0)), kThreads, static_cast<size_t>(bytes), stream>>>(args);
  check_launch("router_bwd");
}

void sort(cudaStream_t stream, const RouterBwdArgs& a, const RouterBwdScratch& s) {
  sort_pairs("router_bwd", stream,
             {.indices = data<int32_t>(a.indices),
              .index_stride = a.indices.stride(0),
              .valid = nullptr,
              .tokens = a.indices.dim(0),
              .top_k = static_cast<int>(a.indices.dim(1)),
              .experts = static_cast<int>(a.proj.dim(0)),
              .align = 1,
              .places = s.places,
              .counts = s.counts,
              .offsets = s.offsets,
              .loads = nullptr,
              .row_pair = s.row_pair,
              .row_token = s.row_token,
              .row_weight = s.row_weight,
              .weights = s.z_weights,
              .weight_stride = a.indices.dim(1),
              .pair_row = nullptr,
              .row_stride = 0});
}

template <class U, class T>
void expert_sums(cudaStream_t stream, const RouterBwdArgs& a, const RouterBwdScratch& s) {
  const SumArgs<U, T> args = {.u = Rows<const U>(a.u),
                              .scale = Rows<const T>(a.scale),
                              .offsets = s.offsets,
                              .row_token = s.row_token,
                              .row_weight = s.row_weight,
                              .hidden = a.u.dim(1),
                              .sums = a.dscale.defined() ? s.sums : nullptr,
                              .dproj = a.dproj.defined() ? Rows<float>(a.dproj) : Rows<float>()};
  const dim3 grid(static_cast<unsigned>(a.proj.dim(0)),
                  static_cast<unsigned>(ceil_div(args.hidden, kColumns)));
  const bool quads = args.hidden % 4 == 0 && args.u.quads();
  const auto kernel = quads ? expert_sums_kernel<U, T, true> : expert_sums_kernel<U, T, false>;
  kernel<<<grid, kThreads, 0, stream>>>(args);
  check_launch("router_bwd");
}

template <class U, class T>
void run(cudaStream_t stream, const RouterBwdArgs& a, const RouterBwdScratch& s) {
  const int64_t experts = a.proj.dim(0), hidden = a.u.dim(1);
  pair_gradients<T>(stream, a, s);
  input_gradient<U, T>(stream, a, s);
  if (!RouterBwdScratch::sorts(a)) return;
  sort(stream, a, s);
  if (a.dproj.defined() || a.dscale.defined()) expert_sums<U, T>(stream, a, s);
  if (a.dscale.defined()) {
    scale_gradient_kernel<T><<<static_cast<unsigned>(ceil_div(hidden, 32)), kThreads, 0, stream>>>(
        Rows<const T>(a.proj), s.sums, experts, hidden, data<float>(a.dscale));
    check_launch("router_bwd");
  }
  if (a.dper_expert_scale.defined()) {
    expert_scale_gradient_kernel<<<static_cast<unsigned>(experts), kPairThreads, 0, stream>>>(
        s.offsets, s.row_pair, s.dscales, data<float>(a.dper_expert_scale));
    check_launch("router_bwd");
  }
}

}  // namespace

void router_bwd(Context& ctx, const RouterBwdArgs& a) {
  const ArenaScope scope(ctx.scratch);
  const RouterBwdScratch scratch(cpu::scratch_block(ctx, router_bwd_scratch_bytes(a)), a);
  by_dtype("router_bwd", a.u.dtype(), [&]<class U>(U) {
    by_dtype("router_bwd", a.proj.dtype(), [&]<class T>(T) {
      if (a.u.numel() > 0) run<U, T>(ctx.stream, a, scratch);
    });
  });
}

}  // namespace lapidary::ops::cuda
