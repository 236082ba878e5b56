#include "lapidary/ops/cuda/attention_mma_bwd.cuh"

namespace lapidary::ops::cuda::mma {
namespace {

extern __shared__ __align__(1024) unsigned char shared_memory[];

// Everything is transposed: keys are rows, queries columns. Of a tile of scores four warps form
// S^T = K Q^T and four dP^T = V dO^T, a quarter each; a pair of them then turns one half each into
// P^T and dS^T. Of dv += P^T dO and dk += dS^T Q a warp owns 32 keys and kOwnColumns columns.
template <int D>
struct Shape {
  static constexpr int kKeys = D > 256 ? 32 : 64, kQueries = kKeys;
  static constexpr int kColumnGroups = 8 / (kKeys / 32), kOwnColumns = D / kColumnGroups;
  static constexpr int kScoreKeys = kKeys / 2, kScoreQueries = kQueries / 2;
  static constexpr int kM = kScoreKeys / 16, kN = kScoreQueries / 8;
  static constexpr int kTileBytes = kKeys * D * 2, kScoreBytes = kKeys * kQueries * 2;
  static constexpr int kV = kTileBytes;           // K lies at 0
  static constexpr int kStages = 2 * kTileBytes;  // two of: a tile of Q, one of dO
  static constexpr int kP = kStages + 4 * kTileBytes;
  static constexpr int kDs = kP + kScoreBytes;
  static constexpr int kExchange = kDs + kScoreBytes;
  static constexpr int kStats = kExchange + kKeys * kQueries * 4;  // two of: lse, delta
  static constexpr int kRoom = kStats + 4 * kQueries * 4;
  static constexpr int kBytes = kRoom + 32;
  static_assert(kBytes <= 227 * 1024);
};

// A warp's quarter of S^T (dp = false) or dP^T becomes half a quarter of both: the pair of warps
// swaps halves. A lane's numbers go to the same lane, so their order in memory is free.
template <int kM, int kN>
__device__ void swap_halves(const float (&acc)[kM][kN][4], float (&s)[kM][kN / 2][4],
                            float (&dp)[kM][kN / 2][4], bool is_dp, int pair, int lane,
                            float4* exchange) {
  constexpr int kHalf = kN / 2, kSlots = kM * kHalf * 32;
  float4* mine = exchange + (pair * 2 + (is_dp ? 1 : 0)) * kSlots + lane;
  const float4* other = exchange + (pair * 2 + (is_dp ? 0 : 1)) * kSlots + lane;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      float sent[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) sent[i] = is_dp ? acc[m][n][i] : acc[m][n + kHalf][i];
      mine[(m * kHalf + n) * 32] = make_float4(sent[0], sent[1], sent[2], sent[3]);
    }
  }
  pair_barrier(pair);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kHalf; ++n) {
      const float4 got = other[(m * kHalf + n) * 32];
      const float received[4] = {got.x, got.y, got.z, got.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = is_dp ? received[i] : acc[m][n][i];
        dp[m][n][i] = is_dp ? acc[m][n + kHalf][i] : received[i];
      }
    }
  }
}

// out [32, 8 kN] of f32 += factor acc, rows that exist.
template <int kN>
__device__ void add_to_rows(const float (&acc)[2][kN][4], float* out, int64_t stride, int first,
                            int limit, float factor, int lane) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + m * 16 + i * 8 + lane / 4;
      if (row >= limit) continue;
      auto* to = reinterpret_cast<float2*>(out + row * stride) + lane % 4;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        float2 sum = to[n * 4];
        sum.x += factor * acc[m][n][2 * i];
        sum.y += factor * acc[m][n][2 * i + 1];
        to[n * 4] = sum;
      }
    }
  }
}

// One block: kKeys keys of one key head, against the queries of all heads that read it.
template <int D>
__global__ void __launch_bounds__(kThreads, 1) dkv(const __grid_constant__ BwdParams p) {
  using S = Shape<D>;
  constexpr int kHalf = S::kN / 2;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int block = static_cast<int>(blockIdx.x), group = block % p.groups;
  const int b = block / p.groups % p.rows;
  // Early keys are seen by the most queries: they start first.
  const int t0 = block / (p.groups * p.rows) * S::kKeys;
  const auto look = Outlook<false>::of(p.mask, b, t0, min(t0 + S::kKeys, p.mask.keys), p.queries,
                                       reinterpret_cast<int*>(shared_memory + S::kRoom));
  const int first_tile = look.first / S::kQueries;
  const int tiles = (look.last + S::kQueries - 1) / S::kQueries - first_tile;
  const int steps = tiles * p.ratio;
  if (steps == 0) return;

  const uint32_t base = shared_address(shared_memory);
  load_tile<D, S::kKeys>(base, p.k.at(b, group), p.k.token, t0, p.mask.keys);
  load_tile<D, S::kKeys>(base + S::kV, p.v.at(b, group), p.v.token, t0, p.mask.keys);
  const auto first_query = [&](int step) { return (first_tile + step % tiles) * S::kQueries; };
  const auto fetch = [&](int step) {
    if (step < steps) {
      const int head = group * p.ratio + step / tiles, s0 = first_query(step);
      const uint32_t stage = base + S::kStages + step % 2 * 2 * S::kTileBytes;
      load_tile<D, S::kQueries>(stage, p.q.at(b, head), p.q.token, s0, p.queries);
      load_tile<D, S::kQueries>(stage + S::kTileBytes, p.dout.at(b, head), p.dout.token, s0,
                                p.queries);
      // Of queries that do not exist q and dout are zero, and any finite lse will do.
      if (thread < 2 * S::kQueries) {
        const float* from = thread < S::kQueries ? p.lse_of(b, head) : p.delta_of(b, head);
        const int s = s0 + thread % S::kQueries;
        copy_async4(base + S::kStats + (step % 2 * 2 * S::kQueries + thread) * 4,
                    from + (s < p.queries ? s : 0), s < p.queries);
      }
    }
    commit_copies();
  };

  const int pair = warp % 4;
  const bool is_dp = warp >= 4;
  const int score_key = pair / 2 * S::kScoreKeys, score_query = pair % 2 * S::kScoreQueries;
  const int own_query = score_query + (is_dp ? kHalf * 8 : 0);  // of the half kept after swapping
  const int own_key = warp / S::kColumnGroups * 32;
  const int own_column = warp % S::kColumnGroups * S::kOwnColumns;
  float dk[2][S::kOwnColumns / 8][4] = {}, dv[2][S::kOwnColumns / 8][4] = {};
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    const int s0 = first_query(step);
    uint32_t hidden = 0;
    if (!look.all_visible(p.mask, b, s0, s0 + S::kQueries, t0, t0 + S::kKeys, p.queries, lane)) {
      const int query = s0 + own_query + lane % 4 * 2, key = t0 + score_key + lane / 4;
      hidden = hidden_pairs<S::kM * kHalf * 4>(p.mask, b, p.queries, [=](int e) {
        return make_int2(query + e / 4 % kHalf * 8 + e % 2,
                         key + e / (4 * kHalf) * 16 + e / 2 % 2 * 8);
      });
    }
    wait_copies<0>();
    __syncthreads();  // the stage is filled; the other one and the scores are free
    fetch(step + 1);
    const uint32_t q_tile = base + S::kStages + step % 2 * 2 * S::kTileBytes;
    const uint32_t dout_tile = q_tile + S::kTileBytes;
    float s[S::kM][kHalf][4], dp[S::kM][kHalf][4];
    {
      float acc[S::kM][S::kN][4] = {};
      add_rows_by_rows<D>(acc, base + (is_dp ? S::kV : 0) + score_key * D * 2,
                          (is_dp ? dout_tile : q_tile) + score_query * D * 2, lane);
      swap_halves(acc, s, dp, is_dp, pair, lane,
                  reinterpret_cast<float4*>(shared_memory + S::kExchange));
    }
    const float* lse = reinterpret_cast<const float*>(shared_memory + S::kStats) +
                       step % 2 * 2 * S::kQueries + own_query + lane % 4 * 2;
    const float* delta = lse + S::kQueries;
#pragma unroll
    for (int m = 0; m < S::kM; ++m) {
      const int row = score_key + m * 16;
#pragma unroll
      for (int n = 0; n < kHalf; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = n * 8 + i % 2;
          probability(s[m][n][i], dp[m][n][i], p.scale_log2, lse[column], delta[column],
                      (hidden >> ((m * kHalf + n) * 4 + i) & 1) == 0);
        }
      }
      put_result<S::kQueries>(shared_memory + S::kP, row, own_query / 8, s[m], lane);
      put_result<S::kQueries>(shared_memory + S::kDs, row, own_query / 8, dp[m], lane);
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < S::kQueries / 16; ++n) {
      uint32_t left[2][4];
      const uint32_t at =
          base + own_key * S::kQueries * 2 + (by_rows<S::kQueries>(lane) ^ (n * 32));
#pragma unroll
      for (int m = 0; m < 2; ++m) load_matrices(left[m], at + S::kP + m * 16 * S::kQueries * 2);
      add_product<D>(dv, left, dout_tile + n * 16 * D * 2, own_column, lane);
#pragma unroll
      for (int m = 0; m < 2; ++m) load_matrices(left[m], at + S::kDs + m * 16 * S::kQueries * 2);
      add_product<D>(dk, left, q_tile + n * 16 * D * 2, own_column, lane);
    }
  }
  const int first = t0 + own_key;
  add_to_rows(dk, p.dk.at(b, group) + own_column, p.dk.token, first, p.mask.keys, p.scale, lane);
  add_to_rows(dv, p.dv.at(b, group) + own_column, p.dv.token, first, p.mask.keys, 1.0F, lane);
}

}  // namespace

void launch_dkv(const BwdParams& p, int64_t size, int64_t keys, cudaStream_t stream) {
  by_size(size, [&]<int D>() {
    using S = Shape<D>;
    const int64_t blocks = int64_t{p.rows} * p.groups * ceil_div(keys, S::kKeys);
    launch("attention_bwd", dkv<D>, p.queries > 0 ? blocks : 0, S::kBytes, stream, p);
  });
}

}  // namespace lapidary::ops::cuda::mma
