#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "lapidary/ops/attention.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/mask.h"

namespace lapidary::ops::cpu {

// A tile of queries is a run of positions times all the query heads that read one key head, so that
// each key is fetched once for all of them: row = (position - s0) * ratio + head. Tiles of keys are
// kKeyTile long and start at multiples of kKeyStep, which keeps the shapes of the products few.
constexpr int64_t kQueryTile = 128;
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

// The rows of a tile in float: out [positions * ratio, D] from t [B, S, heads, D]. Products run in
// float for bf16 too: tiles are too small to pay for the rearrangement that bf16 products need, and
// the probabilities keep their digits.
template <class T>
void pack_tile(const ConstTensor& t, int64_t b, int64_t s0, int64_t s1, int64_t head, int64_t ratio,
               float* out) {
  const int64_t size = t.dim(3);
  for (int64_t s = s0; s < s1; ++s) {
    const T* row = t.as<T>() + b * t.stride(0) + s * t.stride(1) + head * t.stride(2);
    for (int64_t h = 0; h < ratio; ++h, out += size) {
      axpby_row(row + h * t.stride(2), static_cast<const T*>(nullptr), out, size, 1.0F, 0.0F);
    }
  }
}

// Keys or values [t0, t1) of one head in float: in place where they are float already, else widened
// into `room` [kKeyTile, D].
struct KeyPanel {
  const float* data;
  int64_t stride;
};
template <class T>
KeyPanel key_panel(const ConstTensor& k, int64_t b, int64_t t0, int64_t t1, int64_t group,
                   float* room) {
  const T* rows = k.as<T>() + b * k.stride(0) + t0 * k.stride(1) + group * k.stride(2);
  if constexpr (std::is_same_v<T, float>) {
    return {rows, k.stride(1)};
  } else {
    const int64_t size = k.dim(3);
    for (int64_t t = t0; t < t1; ++t, rows += k.stride(1)) {
      axpby_row(rows, static_cast<const T*>(nullptr), room + (t - t0) * size, size, 1.0F, 0.0F);
    }
    return {room, size};
  }
}

// Elements of the room that key_panel needs.
template <class T>
int64_t key_panel_size(const AttentionShape& n) {
  return std::is_same_v<T, float> ? 0 : kKeyTile * n.size;
}

inline void zero_outside(float* row, int64_t begin, int64_t end, int64_t n) {
  std::memset(row, 0, static_cast<size_t>(begin) * sizeof(float));
  std::memset(row + end, 0, static_cast<size_t>(n - end) * sizeof(float));
}

// The first element of key head `group` of row b at position t, of a gradient.
inline float* gradient_row(const Tensor& t, int64_t b, int64_t position, int64_t group) {
  return t.as<float>() + b * t.stride(0) + position * t.stride(1) + group * t.stride(2);
}

}  // namespace lapidary::ops::cpu
