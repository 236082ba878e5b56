#include "lapidary/ops/cuda/grouped_tiles.cuh"

namespace lapidary::ops::cuda::grouped {
namespace {

constexpr int kThreads = 128;

// Rows [first, last) of an expert; whatever `offsets` holds, inside [0, rows).
struct Range {
  int first, last;
};
__device__ Range range_of(const int32_t* offsets, int expert, int rows) {
  const int first = min(max(offsets[expert], 0), rows);
  return {first, min(max(offsets[expert + 1], first), rows)};
}

// One block per expert.
__global__ void list_kernel(const int32_t* offsets, int experts, int rows, int tile_rows, int next,
                            RowTiles out) {
  const int expert = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  int before = 0;
  for (int e = thread; e < expert; e += kThreads) {
    const Range r = range_of(offsets, e, rows);
    before += tiles_of(r.last - r.first, tile_rows);
  }
  before = block_sum(before);
  const Range own = range_of(offsets, expert, rows);
  const int end = min(before + tiles_of(own.last - own.first, tile_rows), out.capacity);
  for (int i = before + thread; i < end; i += kThreads) {
    out.of_tile[i] = {expert, own.first, own.last - own.first, before};
  }
  if (expert == experts - 1 && thread == 0) {
    *out.total = end;
    *out.next = next;
  }
}

}  // namespace

void list_row_tiles(gpu::Stream stream, const ConstTensor& offsets, int64_t rows, int tile_rows,
                    int next, const RowTiles& tiles) {
  const int experts = static_cast<int>(offsets.dim(0) - 1);
  list_kernel<<<static_cast<unsigned>(experts), kThreads, 0, stream>>>(
      data<int32_t>(offsets), experts, static_cast<int>(rows), tile_rows, next, tiles);
  check_launch("grouped_matmul");
}

}  // namespace lapidary::ops::cuda::grouped
