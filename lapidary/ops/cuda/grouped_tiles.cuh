#pragma once

#include "lapidary/ops/cuda/device.cuh"

// The rows of all experts, cut into tiles on the device: how many an expert has only the GPU knows.
namespace lapidary::ops::cuda::grouped {

// The segment that a row tile belongs to.
struct alignas(16) Segment {
  int expert, first_row, rows;
  int first_tile;  // of its row tiles
};

struct RowTiles {
  Segment* of_tile;  // by row tile, experts ascending
  int* total;        // row tiles
  int* next;         // a counter that blocks take work from
  int capacity;
};

// The list in `memory` of grouped_matmul_scratch_bytes, not yet filled.
inline RowTiles row_tiles_in(const Tensor& memory) {
  auto* header = static_cast<Segment*>(memory.data());
  return {header + 1, &header->expert, &header->first_row,
          static_cast<int>(memory.bytes() / static_cast<int64_t>(sizeof(Segment)) - 1)};
}

// Fills the list with tiles of at most tile_rows rows and sets the counter to `next`.
void list_row_tiles(gpu::Stream stream, const ConstTensor& offsets, int64_t rows, int tile_rows,
                    int next, const RowTiles& tiles);

// Rows [first, first + count) of a segment. Tiles of one segment are about equally high: multiples
// of `granule`, a divisor of tile_rows.
struct Cut {
  int first, count;
};
__host__ __device__ inline int tiles_of(int rows, int tile_rows) {
  return (rows + tile_rows - 1) / tile_rows;
}
__host__ __device__ inline Cut cut_rows(int rows, int tiles, int granule, int i) {
  const int height = ((rows + tiles - 1) / tiles + granule - 1) / granule * granule;
  const int first = i * height;
  return {first, rows - first < height ? rows - first : height};
}

}  // namespace lapidary::ops::cuda::grouped
