#include <algorithm>

#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/grouped_mma.cuh"
#include "lapidary/ops/cuda/grouped_plain.cuh"
#include "lapidary/ops/cuda/grouped_tiles.cuh"

namespace lapidary::ops::cuda {
namespace grouped {
namespace {

constexpr char kOp[] = "grouped_matmul";
constexpr int kTileRows = 128, kTileColumns = 256, kDepth = 64;
constexpr int kGranule = 32;  // of a tile's rows: two warps of 16
constexpr int kThreads = 256;
constexpr int kWarpColumns = 64;
constexpr int kStages = 4;
constexpr int kQueue = 8;  // more than the tiles that loads are ahead of products

using ATile = OperandTile<Dense::depth, kTileRows, kDepth>;
template <Dense kDense>
using BTile = OperandTile<kDense, kTileColumns, kDepth>;
constexpr int kBytesA = ATile::kBytes;
constexpr int kStageBytes = kBytesA + BTile<Dense::depth>::kBytes;
static_assert(BTile<Dense::depth>::kBytes == BTile<Dense::outer>::kBytes);

struct Product {
  const device_bf16* a;
  const device_bf16* b;
  device_bf16* out;
  int64_t a_stride, b_stride, b_expert, out_stride;
  int n, k;
  int column_tiles;
  RowTiles row_tiles;
};

// One unit of work. Expert by expert, column tile by column tile, row tiles fastest: blocks that
// run together share the columns of a weight and the rows of an input in the L2 cache.
struct alignas(16) Tile {
  int expert;
  int row, rows;  // 0 rows: there is no more work
  int column;
};

__device__ Tile tile_of(const Product& p, const Segment& s, int index) {
  const int tiles = tiles_of(s.rows, kTileRows), local = index - s.first_tile * p.column_tiles;
  const Cut cut = cut_rows(s.rows, tiles, kGranule, local % tiles);
  return {s.expert, s.first_row + cut.first, cut.count, local / tiles * kTileColumns};
}

// Brings operands into shared memory, one stage after the other, through all tiles of a block
// without a pause: the first stages of a tile arrive while the one before is finished. Which tile
// comes next is asked for as late as its latency allows, so that blocks end together.
template <Dense kB>
class Loader {
 public:
  __device__ Loader(const Product& p, Tile* queue, uint32_t stages)
      : p_(p),
        queue_(queue),
        stages_(stages),
        steps_((p.k + kDepth - 1) / kDepth),
        total_(*p.row_tiles.total * p.column_tiles),
        a_(p.a),
        b_(p.b) {}

  __device__ void start() {
    if (threadIdx.x == 0) publish(0, static_cast<int>(blockIdx.x), segment(blockIdx.x));
  }

  // The next stage; zeros when there is no more work. Between two calls all threads meet.
  __device__ __forceinline__ void load(int stage) {
    if (step_ == 0) begin_tile();
    if (threadIdx.x == 0 && rows_ > 0) look_ahead();
    const int k = step_ * kDepth;
    const uint32_t to = stages_ + static_cast<uint32_t>(stage * kStageBytes);
    ATile::fill<kThreads>(to, a_ + k, p_.a_stride, rows_, p_.k - k);
    if constexpr (kB == Dense::depth) {
      BTile<kB>::template fill<kThreads>(to + kBytesA, b_ + k, p_.b_stride, columns_, p_.k - k);
    } else {
      BTile<kB>::template fill<kThreads>(to + kBytesA, b_ + k * p_.b_stride, p_.b_stride, p_.k - k,
                                         columns_);
    }
    commit_copies();
    if (++step_ == steps_) {
      step_ = 0;
      tile_ += rows_ > 0 ? 1 : 0;  // the end stays the end
    }
  }

 private:
  __device__ __forceinline__ void begin_tile() {
    const Tile tile = queue_[tile_ % kQueue];
    rows_ = tile.rows;
    columns_ = tile.rows > 0 ? p_.n - tile.column : 0;
    if (tile.rows == 0) return;
    a_ = p_.a + tile.row * p_.a_stride;
    b_ = p_.b + tile.expert * p_.b_expert +
         (kB == Dense::depth ? tile.column * p_.b_stride : tile.column);
  }
  // Three requests that depend on each other, each one stage after the other if there are so many.
  __device__ __forceinline__ void look_ahead() {
    if (step_ == max(steps_ - 3, 0)) claimed_ = atomicAdd(p_.row_tiles.next, 1);
    if (step_ == max(steps_ - 2, 0)) claimed_segment_ = segment(claimed_);
    if (step_ == steps_ - 1) publish(tile_ + 1, claimed_, claimed_segment_);
  }
  __device__ Segment segment(int index) const {
    if (index >= total_) return {};
    return p_.row_tiles.of_tile[index / p_.column_tiles];
  }
  __device__ void publish(int tile, int index, const Segment& s) {
    queue_[tile % kQueue] = s.rows == 0 ? Tile{} : tile_of(p_, s, index);
  }

  const Product& p_;
  Tile* queue_;
  uint32_t stages_;
  int steps_;
  int total_;
  const device_bf16* a_;
  const device_bf16* b_;
  int rows_ = 0, columns_ = 0;
  int tile_ = 0, step_ = 0;
  int claimed_ = 0;
  Segment claimed_segment_{};
};

// Rounds and stores the sums of a warp, 16 bytes per lane.
template <int kA>
__device__ __forceinline__ void store(const Product& p, const Tile& tile, int first_row,
                                      int first_column, float (&sum)[kA][8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int column = tile.column + first_column + lane % 4 * 8;
#pragma unroll
  for (int i = 0; i < kA; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 16 * i + 8 * half + lane / 4;
      device_bf16* to = p.out + (tile.row + row) * p.out_stride + column;
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        uint32_t v[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const __nv_bfloat162 pair =
              __floats2bfloat162_rn(sum[i][j + m][2 * half], sum[i][j + m][2 * half + 1]);
          memcpy(&v[m], &pair, sizeof(pair));
        }
        transpose_in_quad(v);
        if (row < tile.rows && column + 8 * j < p.n) {
          *reinterpret_cast<uint4*>(to + 8 * j) = {v[0], v[1], v[2], v[3]};
        }
      }
    }
  }
}

// The first of a warp's columns in a tile. Warps of four processors take turns: where the right
// half of a tile lies beyond the matrix, each processor has one warp with work and one without.
__device__ int warp_column() { return static_cast<int>(threadIdx.x) / 64 * kWarpColumns; }

// A tile of up to 32 kA rows. Two warps share the rows, four the columns. Its first stage has
// arrived and all threads have met. `stage` moves on to the first of the next tile.
template <int kA, Dense kB>
__device__ __forceinline__ void multiply_tile(const Product& p, const Tile& tile, uint32_t stages,
                                              int& stage, Loader<kB>& loader) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp % 2 * 16 * kA, column = warp_column();
  const uint32_t a_lane = stages + ATile::lane_offset(lane, row, true);
  const uint32_t b_lane = stages + kBytesA + BTile<kB>::lane_offset(lane, column, false);
  const auto at = [](int s) { return static_cast<uint32_t>(s * kStageBytes); };
  float sum[kA][8][4] = {};
  Fragments<ATile, BTile<kB>, kA, 4> fragments[2];
  const int steps = (p.k + kDepth - 1) / kDepth;
  fragments[0].load(a_lane + at(stage), b_lane + at(stage), 0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int next = (stage + 1) % kStages;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      if (k + 1 < kDepth / 16) {
        fragments[(k + 1) % 2].load(a_lane + at(stage), b_lane + at(stage), k + 1);
      } else if (step + 1 < steps) {
        wait_copies<kStages - 2>();
        __syncthreads();
        fragments[0].load(a_lane + at(next), b_lane + at(next), 0);
      }
      // Into the stage before this one, which nobody reads any more since the threads last met.
      if (k == 0) loader.load((stage + kStages - 1) % kStages);
      fragments[k % 2].multiply(sum);
    }
    stage = next;
  }
  store<kA>(p, tile, row, column, sum);
}

// The part of a warp without columns: as multiply_tile, but for the products.
template <Dense kB>
__device__ __forceinline__ void pass_tile(const Product& p, int& stage, Loader<kB>& loader) {
  const int steps = (p.k + kDepth - 1) / kDepth;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    loader.load((stage + kStages - 1) % kStages);
    if (step + 1 < steps) {
      wait_copies<kStages - 2>();
      __syncthreads();
    }
    stage = (stage + 1) % kStages;
  }
}

template <Dense kB>
__global__ void __launch_bounds__(kThreads, 1) tiles_kernel(const __grid_constant__ Product p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ Tile queue[kQueue];
  const uint32_t stages = shared_address(memory);
  Loader<kB> loader(p, queue, stages);
  loader.start();
#pragma unroll 1
  for (int s = 0; s < kStages - 1; ++s) {
    __syncthreads();
    loader.load(s);
  }
  int stage = 0;
#pragma unroll 1
  for (int n = 0;; ++n) {
    wait_copies<kStages - 2>();
    __syncthreads();
    const Tile tile = queue[n % kQueue];
    if (tile.rows == 0) break;
    if (tile.column + warp_column() >= p.n) {
      pass_tile<kB>(p, stage, loader);
      continue;
    }
    switch ((tile.rows + kGranule - 1) / kGranule) {
      case 1: multiply_tile<1, kB>(p, tile, stages, stage, loader); break;
      case 2: multiply_tile<2, kB>(p, tile, stages, stage, loader); break;
      case 3: multiply_tile<3, kB>(p, tile, stages, stage, loader); break;
      default: multiply_tile<4, kB>(p, tile, stages, stage, loader); break;
    }
  }
  wait_copies<0>();
}

template <bool kTransB, class T>
__global__ void __launch_bounds__(kPlainThreads)
    plain_kernel(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t b_expert,
                 T* out, int64_t out_stride, int64_t n, int64_t k, RowTiles tiles,
                 int column_tiles) {
  const int row_tile = static_cast<int>(blockIdx.x) / column_tiles;
  if (row_tile >= *tiles.total) return;
  const Segment s = tiles.of_tile[row_tile];
  const int64_t first = (row_tile - s.first_tile) * kPlainTile;
  const int64_t row = s.first_row + first, rows = s.rows - first;
  const int64_t column = static_cast<int64_t>(blockIdx.x) % column_tiles * kPlainTile;
  const PlainOperand<T> left = {a + row * a_stride, a_stride, 1, rows};
  const T* weight = b + s.expert * b_expert;
  const PlainOperand<T> right =
      kTransB ? PlainOperand<T>{weight + column * b_stride, b_stride, 1, n - column}
              : PlainOperand<T>{weight + column, 1, b_stride, n - column};
  float sum[4][4] = {};
  plain_product<true, kTransB>(left, right, k, sum);
  const int i0 = static_cast<int>(threadIdx.x) / 16 * 4;
  const int j0 = static_cast<int>(threadIdx.x) % 16 * 4;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      if (i0 + i >= rows || column + j0 + j >= n) continue;
      out[(row + i0 + i) * out_stride + column + j0 + j] = from_float<T>(sum[i][j]);
    }
  }
}

bool fits_tensor_cores(const GroupedMatmulArgs& a) {
  const auto rows_fit = [](const ConstTensor& t) {
    bool fit = aligned16(t.data()) && t.dim(-1) % 8 == 0;
    for (int i = 0; i + 1 < t.rank(); ++i) fit = fit && t.stride(i) % 8 == 0;
    return fit;
  };
  return a.a.dtype() == Dtype::bf16 && a.a.dim(1) > 0 && a.a.dim(1) < INT32_MAX / 2 &&
         a.out.dim(1) < INT32_MAX / 2 && rows_fit(a.a) && rows_fit(a.b) && rows_fit(a.out);
}

int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    check_launch(kOp);
  }
  return count;
}

template <Dense kB>
void run_tiles(Context& ctx, const GroupedMatmulArgs& a, const RowTiles& tiles) {
  const int64_t n = a.out.dim(1), column_tiles = ceil_div(n, kTileColumns);
  const int64_t row_tiles = ceil_div(a.a.dim(0), kTileRows) + a.b.dim(0);
  const auto blocks =
      static_cast<int>(std::min<int64_t>(multiprocessors(), row_tiles * column_tiles));
  list_row_tiles(ctx.stream, a.offsets, a.a.dim(0), kTileRows, blocks, tiles);
  const Product p = {.a = data<device_bf16>(a.a),
                     .b = data<device_bf16>(a.b),
                     .out = data<device_bf16>(a.out),
                     .a_stride = a.a.stride(0),
                     .b_stride = a.b.stride(1),
                     .b_expert = a.b.stride(0),
                     .out_stride = a.out.stride(0),
                     .n = static_cast<int>(n),
                     .k = static_cast<int>(a.a.dim(1)),
                     .column_tiles = static_cast<int>(column_tiles),
                     .row_tiles = tiles};
  constexpr int kBytes = kStages * kStageBytes;
  cudaFuncSetAttribute(tiles_kernel<kB>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  tiles_kernel<kB><<<static_cast<unsigned>(blocks), kThreads, kBytes, ctx.stream>>>(p);
  check_launch(kOp);
}

template <bool kTransB>
void run_plain(Context& ctx, const GroupedMatmulArgs& a, const RowTiles& tiles) {
  list_row_tiles(ctx.stream, a.offsets, a.a.dim(0), kPlainTile, 0, tiles);
  const int64_t column_tiles = ceil_div(a.out.dim(1), kPlainTile);
  const auto blocks = static_cast<unsigned>(tiles.capacity * column_tiles);
  by_dtype(kOp, a.a.dtype(), [&]<class T>(T) {
    plain_kernel<kTransB><<<blocks, kPlainThreads, 0, ctx.stream>>>(
        data<T>(a.a), a.a.stride(0), data<T>(a.b), a.b.stride(1), a.b.stride(0), data<T>(a.out),
        a.out.stride(0), a.out.dim(1), a.a.dim(1), tiles, static_cast<int>(column_tiles));
    check_launch(kOp);
  });
}

}  // namespace
}  // namespace grouped

void grouped_matmul(Context& ctx, const GroupedMatmulArgs& a) {
  if (a.out.numel() == 0) return;
  const ArenaScope scope(ctx.scratch);
  const grouped::RowTiles tiles =
      grouped::row_tiles_in(ctx.scratch.alloc(Dtype::u8, {grouped_matmul_scratch_bytes(a)}));
  if (a.b.dim(0) == 0) return;
  if (grouped::fits_tensor_cores(a)) {
    return a.trans_b ? grouped::run_tiles<grouped::Dense::depth>(ctx, a, tiles)
                     : grouped::run_tiles<grouped::Dense::outer>(ctx, a, tiles);
  }
  return a.trans_b ? grouped::run_plain<true>(ctx, a, tiles)
                   : grouped::run_plain<false>(ctx, a, tiles);
}

}  // namespace lapidary::ops::cuda
