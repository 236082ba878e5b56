#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "lapidary/ops/attention.h"
#include "lapidary/ops/mask.h"

namespace lapidary::ops::cpu {

// A tile of queries is a run of positions times all the query heads that read one key head, so that
// each key is fetched once for all of them: row = (position - s0) * ratio + head. Tiles of keys are
// kKeyTile long and start at multiples of kKeyStep, which keeps the shapes of the products few.
constexpr int64_t kQueryTile = 64;
constexpr int64_t kKeyTile = 256;
constexpr int64_t kKeyStep = 64;

struct AttentionShape {
  int64_t rows, queries, keys, heads, groups, size;
  int64_t ratio;      // query heads per key head
  int64_t positions;  // of a query tile
  int64_t height;     // rows of a query tile
  AttentionShape(const ConstTensor& q, const ConstTensor& k);
  int64_t query_tiles() const { return (queries + positions - 1) / positions; }
};

struct KeyRange {
  int64_t first, last;
};
// Every key that a query in [s0, s1) sees lies in the range, which begins and ends at multiples of
// kKeyStep (or at the last key).
KeyRange tile_keys(const MaskSpec& mask, int64_t b, int64_t s0, int64_t s1, int64_t keys);

// What the queries of one tile see of one tile of keys.
class TileMask {
 public:
  // Columns [begin, end) of the tile, less those with visible[column - begin] = 0 (null: none).
  struct Row {
    int64_t begin = 0;
    int64_t end = 0;
    const uint8_t* visible = nullptr;
  };
  // bytes: kQueryTile * kKeyTile of memory.
  TileMask(const MaskSpec& mask, uint8_t* bytes) : mask_(mask), bytes_(bytes) {}
  // Looks at queries [s0, s1) and keys [t0, t1) of a row; false when no pair is visible.
  bool look(int64_t b, int64_t s0, int64_t s1, int64_t t0, int64_t t1, int64_t keys);
  const Row& row(int64_t position) const { return ranges_[static_cast<size_t>(position)]; }

 private:
  void look_at_row(int64_t b, int64_t s, int64_t t0, uint8_t* visible, Row& row) const;
  const MaskSpec& mask_;
  uint8_t* bytes_;
  std::array<Row, kQueryTile> ranges_;
};

// Copies the rows of a tile: out [positions * ratio, D] from t [B, S, heads, D].
template <class T>
void pack_tile(const ConstTensor& t, int64_t b, int64_t s0, int64_t s1, int64_t head, int64_t ratio,
               T* out) {
  const int64_t size = t.dim(3);
  for (int64_t s = s0; s < s1; ++s) {
    const T* row = t.as<T>() + b * t.stride(0) + s * t.stride(1) + head * t.stride(2);
    for (int64_t h = 0; h < ratio; ++h, out += size) {
      std::memcpy(out, row + h * t.stride(2), static_cast<size_t>(size) * sizeof(T));
    }
  }
}

template <class T>
void zero_outside(T* row, int64_t begin, int64_t end, int64_t n) {
  std::memset(static_cast<void*>(row), 0, static_cast<size_t>(begin) * sizeof(T));
  std::memset(static_cast<void*>(row + end), 0, static_cast<size_t>(n - end) * sizeof(T));
}

// The first element of key head `group` of row b at position t.
template <class T, class Tensor>
auto key_row(const Tensor& k, int64_t b, int64_t t, int64_t group) {
  return k.template as<T>() + b * k.stride(0) + t * k.stride(1) + group * k.stride(2);
}

}  // namespace lapidary::ops::cpu
