#include "lapidary/ops/cuda/attention_mma.cuh"

namespace lapidary::ops::cuda {
namespace mma {
namespace {

extern __shared__ __align__(1024) unsigned char shared_memory[];

struct Params {
  Heads<const device_bf16> q, k, v;
  Heads<device_bf16> o;
  float* lse;
  int64_t lse_row, lse_head;
  DeviceMask mask;
  int rows, queries, heads, ratio;
  float scale;  // times log2(e)
};

// Sixteen queries are the work of one warp, or of two that halve the keys and the columns of o.
template <int D>
struct Shape {
  static constexpr int kSplit = D > 256 ? 2 : 1;
  static constexpr int kRows = 128 / kSplit, kKeys = 64;
  static constexpr int kOwnKeys = kKeys / kSplit, kOwnColumns = D / kSplit;
  static constexpr int kStages = D > 256 ? 2 : 4;  // tiles of keys or values in flight or in use
  static constexpr int kTileBytes = kKeys * D * 2;
  static constexpr int kRing = kRows * D * 2;  // the queries lie before it
  static constexpr int kP = kRing + kStages * kTileBytes;
  static constexpr int kTops = kP + (kSplit > 1 ? kRows * kKeys * 2 : 0);
  static constexpr int kSums = kTops + kSplit * kRows * 4;
  static constexpr int kRoom = kSums + kSplit * kRows * 4;
  static constexpr int kBytes = kRoom + 32;
  static_assert(kBytes <= 227 * 1024);
};

// The two rows of a lane: largest score so far and sum of exp2(score - top) over the lane's keys.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
};

// Scores to scaled scores; -inf where a bit of `hidden` is set.
template <int kN>
__device__ void scale_scores(float (&s)[kN][4], float scale, uint32_t hidden) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n][i] = (hidden >> (n * 4 + i) & 1) != 0 ? -INFINITY : s[n][i] * scale;
    }
  }
}

// Scaled scores to probabilities relative to the largest score so far, which o and the sums follow.
// other(i, top): the larger of top and that of the warp which has the other keys of row i.
template <int kN, int kO, class Other>
__device__ void update(Softmax& state, float (&s)[kN][4], float (&o)[1][kO][4],
                       const Other& other) {
  float top[2] = {state.top[0], state.top[1]};
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], s[n][i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffU, top[i], 1));
    top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffU, top[i], 2));
  }
  other(top);
  // A row that has seen nothing has no top to subtract.
  const float base[2] = {top[0] == -INFINITY ? 0.0F : top[0], top[1] == -INFINITY ? 0.0F : top[1]};
  if (__any_sync(0xffffffffU, top[0] > state.top[0] || top[1] > state.top[1])) {
    const float shrink[2] = {exp2f(state.top[0] - base[0]), exp2f(state.top[1] - base[1])};
#pragma unroll
    for (int i = 0; i < 2; ++i) state.sum[i] *= shrink[i], state.top[i] = top[i];
#pragma unroll
    for (int n = 0; n < kO; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[0][n][i] *= shrink[i / 2];
    }
  }
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n][i] = exp2f(s[n][i] - base[i / 2]);
      state.sum[i / 2] += s[n][i];
    }
  }
}

// One block: kRows queries of one head.
template <int D>
__global__ void __launch_bounds__(kThreads, 1) forward(const __grid_constant__ Params p) {
  using S = Shape<D>;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = warp / S::kSplit, part = warp % S::kSplit;
  const int block = static_cast<int>(blockIdx.x), head = block % p.heads;
  const int b = block / p.heads % p.rows;
  // Late queries see the most keys: they start first.
  const int s0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) / (p.heads * p.rows) * S::kRows;
  const uint32_t q_tile = shared_address(shared_memory), ring = q_tile + S::kRing;

  load_tile<D, S::kRows>(q_tile, p.q.at(b, head), p.q.token, s0, p.queries);
  const auto look = Outlook<true>::of(p.mask, b, s0, min(s0 + S::kRows, p.queries), p.mask.keys,
                                      reinterpret_cast<int*>(shared_memory + S::kRoom));
  const int first_tile = look.first / S::kKeys;
  const int tiles = (look.last + S::kKeys - 1) / S::kKeys - first_tile;
  const device_bf16* k = p.k.at(b, head / p.ratio);
  const device_bf16* v = p.v.at(b, head / p.ratio);
  // Step 2 j uses the keys of tile j, step 2 j + 1 its values.
  const auto fetch = [&](int step) {
    if (step < 2 * tiles) {
      load_tile<D, S::kKeys>(ring + step % S::kStages * S::kTileBytes, step % 2 == 0 ? k : v,
                             step % 2 == 0 ? p.k.token : p.v.token,
                             (first_tile + step / 2) * S::kKeys, p.mask.keys);
    }
    commit_copies();
  };
  // Waits for a step's tile; the buffer of the step before becomes free and is filled again.
  const auto enter = [&](int step) {
    wait_copies<S::kStages - 2>();
    __syncthreads();
    fetch(step + S::kStages - 1);
    return ring + step % S::kStages * S::kTileBytes;
  };
  for (int step = 0; step < S::kStages - 1; ++step) fetch(step);

  float o[1][S::kOwnColumns / 8][4] = {};
  Softmax state;
  const int row = group * 16 + lane / 4;  // and the one 8 below
  float* tops = reinterpret_cast<float*>(shared_memory + S::kTops);
  const auto other = [&](float(&top)[2]) {
    if constexpr (S::kSplit > 1) {
      if (lane % 4 == 0) tops[part * S::kRows + row] = top[0];
      if (lane % 4 == 0) tops[part * S::kRows + row + 8] = top[1];
      pair_barrier(group);
      top[0] = fmaxf(top[0], tops[(1 - part) * S::kRows + row]);
      top[1] = fmaxf(top[1], tops[(1 - part) * S::kRows + row + 8]);
    }
  };
  for (int j = 0; j < tiles; ++j) {
    const int t0 = (first_tile + j) * S::kKeys;
    uint32_t hidden = 0;
    if (!look.all_visible(p.mask, b, s0, s0 + S::kRows, t0, t0 + S::kKeys, p.queries, lane)) {
      hidden = hidden_in<S::kOwnKeys / 8>(p.mask, b, p.queries, s0 + row,
                                          t0 + part * S::kOwnKeys + lane % 4 * 2);
    }
    const uint32_t k_tile = enter(2 * j);
    float s[1][S::kOwnKeys / 8][4] = {};
    add_rows_by_rows<D>(s, q_tile + group * 16 * D * 2, k_tile + part * S::kOwnKeys * D * 2, lane);
    scale_scores(s[0], p.scale, hidden);
    update(state, s[0], o, other);
    if constexpr (S::kSplit > 1) {
      put_result<S::kKeys>(shared_memory + S::kP, group * 16, part * S::kOwnKeys / 8, s[0], lane);
    }
    const uint32_t v_tile = enter(2 * j + 1);
#pragma unroll
    for (int n = 0; n < S::kKeys / 16; ++n) {
      uint32_t left[1][4];
      if constexpr (S::kSplit > 1) {
        load_matrices(left[0], q_tile + S::kP + group * 16 * S::kKeys * 2 +
                                   (by_rows<S::kKeys>(lane) ^ (n * 32)));
      } else {
        as_left(left[0], s[0], n);
      }
      add_product<D>(o, left, v_tile + n * 16 * D * 2, part * S::kOwnColumns, lane);
    }
  }

  // The queries' place is free now: o goes through it to leave in whole rows.
  wait_copies<0>();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    state.sum[i] += __shfl_xor_sync(0xffffffffU, state.sum[i], 1);
    state.sum[i] += __shfl_xor_sync(0xffffffffU, state.sum[i], 2);
  }
  float* sums = reinterpret_cast<float*>(shared_memory + S::kSums);
  if (lane % 4 == 0) sums[part * S::kRows + row] = state.sum[0];
  if (lane % 4 == 0) sums[part * S::kRows + row + 8] = state.sum[1];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + i * 8;
    const float sum = S::kSplit > 1 ? sums[r] + sums[S::kRows + r] : sums[r];
    const float inverse = sum > 0.0F ? 1.0F / sum : 0.0F;
#pragma unroll
    for (int n = 0; n < S::kOwnColumns / 8; ++n) {
      o[0][n][2 * i] *= inverse;
      o[0][n][2 * i + 1] *= inverse;
    }
    if (p.lse != nullptr && part == 0 && lane % 4 == 0 && s0 + r < p.queries) {
      p.lse[b * p.lse_row + head * p.lse_head + s0 + r] =
          sum > 0.0F ? state.top[i] * kLn2 + logf(sum) : INFINITY;
    }
  }
  put_result<D>(shared_memory, group * 16, part * S::kOwnColumns / 8, o[0], lane);
  __syncwarp();
  store_rows<D, S::kOwnColumns>(shared_memory, group * 16, part * S::kOwnColumns, p.o.at(b, head),
                                p.o.token, s0 + group * 16, p.queries, lane);
}

}  // namespace
}  // namespace mma

bool attention_mma_fits(const AttentionArgs& a) {
  return mma::shapes_fit(a.q, a.k) && mma::in_sixteens(a.q) && mma::in_sixteens(a.k) &&
         mma::in_sixteens(a.v) && mma::in_sixteens(a.o) &&
         (!a.lse.defined() || a.lse.stride(2) == 1);
}

void attention_mma(Context& ctx, const AttentionArgs& a) {
  mma::Params p = {};
  p.q = mma::heads_of<const device_bf16>(a.q);
  p.k = mma::heads_of<const device_bf16>(a.k);
  p.v = mma::heads_of<const device_bf16>(a.v);
  p.o = mma::heads_of<device_bf16>(a.o);
  if (a.lse.defined()) {
    p.lse = data<float>(a.lse);
    p.lse_row = a.lse.stride(0), p.lse_head = a.lse.stride(1);
  }
  p.mask = DeviceMask::of(a.mask, a.k.dim(1));
  p.rows = static_cast<int>(a.q.dim(0)), p.queries = static_cast<int>(a.q.dim(1));
  p.heads = static_cast<int>(a.q.dim(2)), p.ratio = static_cast<int>(a.q.dim(2) / a.k.dim(2));
  p.scale = static_cast<float>(a.scale * 1.4426950408889634);
  mma::by_size(a.q.dim(3), [&]<int D>() {
    using S = mma::Shape<D>;
    const int64_t blocks = a.q.dim(0) * a.q.dim(2) * ceil_div(a.q.dim(1), S::kRows);
    mma::launch("attention", mma::forward<D>, blocks, S::kBytes, ctx.stream, p);
  });
}

}  // namespace lapidary::ops::cuda
