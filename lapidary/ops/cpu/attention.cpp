#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "lapidary/ops/cpu/attention_tile.h"
#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/gemm.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/scratch.h"

namespace lapidary::ops::cpu {
namespace {

// Memory of one thread. The probabilities overwrite the scores.
template <class T>
struct Scratch {
  float* q;  // [height, D]
  float* k;  // key_panel's room, for keys and for values
  float* v;
  float* p;    // [height, kKeyTile]
  float* o;    // [height, D]
  float* top;  // [height]: largest score so far
  float* sum;  // [height]: sum of exp(score - top)
  uint8_t* visible;
  int64_t bytes;
  Scratch(void* base, const AttentionShape& n) {
    Carver carver(base);
    q = carver.take<float>(n.height * n.size);
    k = carver.take<float>(key_panel_size<T>(n));
    v = carver.take<float>(key_panel_size<T>(n));
    p = carver.take<float>(n.height * kKeyTile);
    o = carver.take<float>(n.height * n.size);
    top = carver.take<float>(n.height);
    sum = carver.take<float>(n.height);
    visible = carver.take<uint8_t>(kQueryTile * kKeyTile);
    bytes = carver.bytes();
  }
};

template <class T>
class Tile {
 public:
  Tile(const AttentionArgs& a, const AttentionShape& n, void* memory)
      : a_(a), n_(n), s_(memory, n), mask_(a.mask, s_.visible) {}

  // Queries [s0, s1) of row b against key head `group`.
  void run(int64_t b, int64_t group, int64_t s0, int64_t s1) {
    const int64_t height = (s1 - s0) * n_.ratio;
    const int64_t head = group * n_.ratio;
    pack_tile<T>(a_.q, b, s0, s1, head, n_.ratio, s_.q);
    std::fill_n(s_.o, height * n_.size, 0.0F);
    std::fill_n(s_.top, height, kLowest);
    std::fill_n(s_.sum, height, 0.0F);
    const KeyRange range = tile_keys(a_.mask, b, s0, s1, n_.keys);
    for (int64_t t0 = range.first; t0 < range.last; t0 += kKeyTile) {
      const int64_t t1 = std::min(t0 + kKeyTile, range.last);
      if (mask_.look(b, s0, s1, t0, t1, n_.keys)) add_keys(b, group, height, t0, t1);
    }
    for (int64_t r = 0; r < height; ++r) finish_row(b, head + r % n_.ratio, s0 + r / n_.ratio, r);
  }

 private:
  void add_keys(int64_t b, int64_t group, int64_t height, int64_t t0, int64_t t1) {
    const int64_t width = t1 - t0;
    const KeyPanel k = key_panel<T>(a_.k, b, t0, t1, group, s_.k);
    gemm({.m = height,
          .n = width,
          .k = n_.size,
          .a = s_.q,
          .b = k.data,
          .c = s_.p,
          .lda = n_.size,
          .ldb = k.stride,
          .ldc = kKeyTile,
          .trans_b = true});
    for (int64_t r = 0; r < height; ++r) softmax_row(r, mask_.row(r / n_.ratio), width);
    const KeyPanel v = key_panel<T>(a_.v, b, t0, t1, group, s_.v);
    gemm({.m = height,
          .n = n_.size,
          .k = width,
          .a = s_.p,
          .b = v.data,
          .c = s_.o,
          .lda = kKeyTile,
          .ldb = v.stride,
          .ldc = n_.size,
          .accumulate = true});
  }

  // Scores of row r become probabilities relative to its largest score so far.
  void softmax_row(int64_t r, const TileMask::Row& row, int64_t width) {
    const auto scale = static_cast<float>(a_.scale);
    float* p = s_.p + r * kKeyTile;
    if (row.begin >= row.end) return zero_outside(p, 0, 0, width);
    const int64_t count = row.end - row.begin;
    const float top = std::max(s_.top[r], max_row(p + row.begin, count, scale, row.visible));
    if (s_.sum[r] > 0.0F && top > s_.top[r]) {
      const float shrink = std::exp(s_.top[r] - top);
      float* o = s_.o + r * n_.size;
      axpby_row(o, static_cast<const float*>(nullptr), o, n_.size, shrink, 0.0F);
      s_.sum[r] *= shrink;
    }
    s_.top[r] = top;
    s_.sum[r] += exp_row(p + row.begin, p + row.begin, count, scale, top, row.visible);
    zero_outside(p, row.begin, row.end, width);
  }

  void finish_row(int64_t b, int64_t head, int64_t s, int64_t r) {
    const bool blind = s_.sum[r] == 0.0F;
    T* o = a_.o.template as<T>() + b * a_.o.stride(0) + s * a_.o.stride(1) + head * a_.o.stride(2);
    axpby_row(s_.o + r * n_.size, static_cast<const T*>(nullptr), o, n_.size,
              blind ? 0.0F : 1.0F / s_.sum[r], 0.0F);
    if (!a_.lse.defined()) return;
    a_.lse.template as<float>()[b * a_.lse.stride(0) + head * a_.lse.stride(1) + s] =
        blind ? std::numeric_limits<float>::infinity() : s_.top[r] + std::log(s_.sum[r]);
  }

  const AttentionArgs& a_;
  const AttentionShape& n_;
  Scratch<T> s_;
  TileMask mask_;
};

template <class T>
void forward(const AttentionArgs& a, const AttentionShape& n, char* memory, int64_t bytes) {
  const int64_t tiles = n.query_tiles();
  // Late tiles see the most keys: they start first.
  parallel_tasks(n.rows * n.groups * tiles, [&](int64_t i, int64_t thread) {
    const int64_t tile = tiles - 1 - i / (n.rows * n.groups);
    const int64_t pair = i % (n.rows * n.groups);
    const int64_t s0 = tile * n.positions;
    Tile<T>(a, n, memory + thread * bytes)
        .run(pair / n.groups, pair % n.groups, s0, std::min(s0 + n.positions, n.queries));
  });
}

}  // namespace

int64_t attention_scratch_bytes(const AttentionArgs& a) {
  const AttentionShape n(a.q, a.k);
  const int64_t bytes = a.q.dtype() == Dtype::bf16 ? Scratch<bf16>(nullptr, n).bytes
                                                   : Scratch<float>(nullptr, n).bytes;
  return bytes * thread_count();
}

void attention(Context& ctx, const AttentionArgs& a) {
  const AttentionShape n(a.q, a.k);
  const ArenaScope scope(ctx.scratch);
  const int64_t bytes = attention_scratch_bytes(a);
  auto* memory = static_cast<char*>(scratch_block(ctx, bytes));
  by_dtype("attention", a.q.dtype(),
           [&]<class T>(T) { forward<T>(a, n, memory, bytes / thread_count()); });
}

}  // namespace lapidary::ops::cpu
