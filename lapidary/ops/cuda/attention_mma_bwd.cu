#include "lapidary/ops/cuda/attention_mma_bwd.cuh"

namespace lapidary::ops::cuda {
namespace mma {
namespace {

extern __shared__ __align__(1024) unsigned char shared_memory[];

// Sixteen queries are the work of one warp, or of two that halve the keys and the columns of dq.
template <int D>
struct Shape {
  static constexpr int kSplit = D > 256 ? 2 : 1;
  static constexpr int kRows = 128 / kSplit, kKeys = 64 / kSplit;
  static constexpr int kOwnKeys = kKeys / kSplit, kOwnColumns = D / kSplit;
  static constexpr int kDout = kRows * D * 2;  // Q lies at 0
  static constexpr int kK = 2 * kDout;
  static constexpr int kV = kK + kKeys * D * 2;
  static constexpr int kDs = kV + kKeys * D * 2;
  static constexpr int kRoom = kDs + (kSplit > 1 ? kRows * kKeys * 2 : 0);
  static constexpr int kBytes = kRoom + 32;
  static_assert(kBytes <= 227 * 1024);
};

// One block: kRows queries of one head.
template <int D>
__global__ void __launch_bounds__(kThreads, 1) dq(const __grid_constant__ BwdParams p) {
  using S = Shape<D>;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = warp / S::kSplit, part = warp % S::kSplit;
  const int block = static_cast<int>(blockIdx.x), head = block % p.heads;
  const int b = block / p.heads % p.rows;
  // Late queries see the most keys: they start first.
  const int s0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) / (p.heads * p.rows) * S::kRows;
  const uint32_t q_tile = shared_address(shared_memory), k_tile = q_tile + S::kK,
                 v_tile = q_tile + S::kV;

  load_tile<D, S::kRows>(q_tile, p.q.at(b, head), p.q.token, s0, p.queries);
  load_tile<D, S::kRows>(q_tile + S::kDout, p.dout.at(b, head), p.dout.token, s0, p.queries);
  const auto look = Outlook<true>::of(p.mask, b, s0, min(s0 + S::kRows, p.queries), p.mask.keys,
                                      reinterpret_cast<int*>(shared_memory + S::kRoom));
  const int first_tile = look.first / S::kKeys;
  const int tiles = (look.last + S::kKeys - 1) / S::kKeys - first_tile;
  const auto fetch = [&](uint32_t tile, const Heads<const device_bf16>& from, int j) {
    if (j < tiles) {
      load_tile<D, S::kKeys>(tile, from.at(b, head / p.ratio), from.token,
                             (first_tile + j) * S::kKeys, p.mask.keys);
    }
    commit_copies();
  };
  fetch(v_tile, p.v, 0);

  const int row = group * 16 + lane / 4;  // and the one 8 below
  float lse[2], delta[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int s = s0 + row + i * 8;
    lse[i] = s < p.queries ? p.lse_of(b, head)[s] : INFINITY;
    delta[i] = s < p.queries ? p.delta_of(b, head)[s] : 0.0F;
  }
  float acc[1][S::kOwnColumns / 8][4] = {};
  for (int j = 0; j < tiles; ++j) {
    const int t0 = (first_tile + j) * S::kKeys;
    uint32_t hidden = 0;
    if (!look.all_visible(p.mask, b, s0, s0 + S::kRows, t0, t0 + S::kKeys, p.queries, lane)) {
      hidden = hidden_in<S::kOwnKeys / 8>(p.mask, b, p.queries, s0 + row,
                                          t0 + part * S::kOwnKeys + lane % 4 * 2);
    }
    wait_copies<0>();
    __syncthreads();  // the values are there; the keys before them are done with
    fetch(k_tile, p.k, j);
    float dp[1][S::kOwnKeys / 8][4] = {};
    add_rows_by_rows<D>(dp, q_tile + S::kDout + group * 16 * D * 2,
                        v_tile + part * S::kOwnKeys * D * 2, lane);
    wait_copies<0>();
    __syncthreads();  // the keys are there; the values are done with
    fetch(v_tile, p.v, j + 1);
    float s[1][S::kOwnKeys / 8][4] = {};
    add_rows_by_rows<D>(s, q_tile + group * 16 * D * 2, k_tile + part * S::kOwnKeys * D * 2, lane);
#pragma unroll
    for (int n = 0; n < S::kOwnKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        probability(s[0][n][i], dp[0][n][i], p.scale_log2, lse[i / 2], delta[i / 2],
                    (hidden >> (n * 4 + i) & 1) == 0);
      }
    }
    if constexpr (S::kSplit > 1) {
      put_result<S::kKeys>(shared_memory + S::kDs, group * 16, part * S::kOwnKeys / 8, dp[0], lane);
      pair_barrier(group);
    }
#pragma unroll
    for (int n = 0; n < S::kKeys / 16; ++n) {
      uint32_t left[1][4];
      if constexpr (S::kSplit > 1) {
        load_matrices(left[0], q_tile + S::kDs + group * 16 * S::kKeys * 2 +
                                   (by_rows<S::kKeys>(lane) ^ (n * 32)));
      } else {
        as_left(left[0], dp[0], n);
      }
      add_product<D>(acc, left, k_tile + n * 16 * D * 2, part * S::kOwnColumns, lane);
    }
  }

  // The queries' place is free now: dq goes through it to leave in whole rows. All of this block's
  // dout, which dq may lie over, has been read.
  wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int n = 0; n < S::kOwnColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[0][n][i] *= p.scale;
  }
  put_result<D>(shared_memory, group * 16, part * S::kOwnColumns / 8, acc[0], lane);
  __syncwarp();
  store_rows<D, S::kOwnColumns>(shared_memory, group * 16, part * S::kOwnColumns, p.dq.at(b, head),
                                p.dq.token, s0 + group * 16, p.queries, lane);
}

}  // namespace

void launch_dq(const BwdParams& p, int64_t size, cudaStream_t stream) {
  by_size(size, [&]<int D>() {
    using S = Shape<D>;
    const int64_t blocks = int64_t{p.rows} * p.heads * ceil_div(p.queries, S::kRows);
    launch("attention_bwd", dq<D>, blocks, S::kBytes, stream, p);
  });
}

}  // namespace mma

bool attention_mma_bwd_fits(const AttentionBwdArgs& a) {
  return mma::shapes_fit(a.q, a.k) && mma::in_sixteens(a.q) && mma::in_sixteens(a.k) &&
         mma::in_sixteens(a.v) && mma::in_sixteens(a.dout) && mma::in_sixteens(a.dq) &&
         mma::in_sixteens(a.dk) && mma::in_sixteens(a.dv) && a.lse.stride(2) == 1;
}

void attention_mma_bwd(Context& ctx, const AttentionBwdArgs& a, const float* delta) {
  mma::BwdParams p = {};
  p.dout = mma::heads_of<const device_bf16>(a.dout);
  p.q = mma::heads_of<const device_bf16>(a.q);
  p.k = mma::heads_of<const device_bf16>(a.k);
  p.v = mma::heads_of<const device_bf16>(a.v);
  p.dq = mma::heads_of<device_bf16>(a.dq);
  p.dk = mma::heads_of<float>(a.dk);
  p.dv = mma::heads_of<float>(a.dv);
  p.lse = data<float>(a.lse);
  p.lse_row = a.lse.stride(0), p.lse_head = a.lse.stride(1);
  p.delta = delta;
  p.mask = DeviceMask::of(a.mask, a.k.dim(1));
  p.rows = static_cast<int>(a.q.dim(0)), p.queries = static_cast<int>(a.q.dim(1));
  p.heads = static_cast<int>(a.q.dim(2)), p.groups = static_cast<int>(a.k.dim(2));
  p.ratio = p.heads / p.groups;
  p.scale = static_cast<float>(a.scale);
  p.scale_log2 = static_cast<float>(a.scale * 1.4426950408889634);
  mma::launch_dkv(p, a.q.dim(3), a.k.dim(1), ctx.stream);
  mma::launch_dq(p, a.q.dim(3), ctx.stream);
}

}  // namespace lapidary::ops::cuda
