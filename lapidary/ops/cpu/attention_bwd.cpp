#include <algorithm>
#include <cmath>
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

// Memory of one thread. p overwrites the scores, ds overwrites dp.
template <class T>
struct Scratch {
  float* q;     // [height, D]
  float* dout;  // [height, D]
  float* o;     // [height, D]
  float* k;     // key_panel's room, for keys and for values
  float* v;
  float* p;      // [height, kKeyTile]
  float* ds;     // [height, kKeyTile]
  float* dq;     // [height, D]
  float* lse;    // [height]
  float* delta;  // [height]
  uint8_t* visible;
  int64_t bytes;
  Scratch(void* base, const AttentionShape& n) {
    Carver carver(base);
    q = carver.take<float>(n.height * n.size);
    dout = carver.take<float>(n.height * n.size);
    o = carver.take<float>(n.height * n.size);
    k = carver.take<float>(key_panel_size<T>(n));
    v = carver.take<float>(key_panel_size<T>(n));
    p = carver.take<float>(n.height * kKeyTile);
    ds = carver.take<float>(n.height * kKeyTile);
    dq = carver.take<float>(n.height * n.size);
    lse = carver.take<float>(n.height);
    delta = carver.take<float>(n.height);
    visible = carver.take<uint8_t>(kQueryTile * kKeyTile);
    bytes = carver.bytes();
  }
};

// Which gradients a pass forms.
struct Wanted {
  bool dq;
  bool dkv;
};

template <class T>
class Tile {
 public:
  Tile(const AttentionBwdArgs& a, const AttentionShape& n, void* memory, Wanted wanted)
      : a_(a), n_(n), s_(memory, n), mask_(a.mask, s_.visible), wanted_(wanted) {}

  // Queries [s0, s1) of row b against the keys [first, last) of key head `group`.
  void run(int64_t b, int64_t group, int64_t s0, int64_t s1, int64_t first, int64_t last) {
    const int64_t height = (s1 - s0) * n_.ratio;
    const KeyRange range = tile_keys(a_.mask, b, s0, s1, n_.keys);
    const int64_t from = std::max(range.first, first), to = std::min(range.last, last);
    if (from >= to && !wanted_.dq) return;
    load_queries(b, group * n_.ratio, s0, s1);
    if (wanted_.dq) std::fill_n(s_.dq, height * n_.size, 0.0F);
    for (int64_t t0 = from; t0 < to; t0 += kKeyTile) {
      const int64_t t1 = std::min(t0 + kKeyTile, to);
      if (mask_.look(b, s0, s1, t0, t1, n_.keys)) add_keys(b, group, height, t0, t1);
    }
    if (wanted_.dq) store_dq(b, group * n_.ratio, s0, s1);
  }

 private:
  void load_queries(int64_t b, int64_t head, int64_t s0, int64_t s1) {
    pack_tile<T>(a_.q, b, s0, s1, head, n_.ratio, s_.q);
    pack_tile<T>(a_.dout, b, s0, s1, head, n_.ratio, s_.dout);
    pack_tile<T>(a_.o, b, s0, s1, head, n_.ratio, s_.o);
    for (int64_t r = 0; r < (s1 - s0) * n_.ratio; ++r) {
      s_.delta[r] = dot_row(s_.dout + r * n_.size, s_.o + r * n_.size, n_.size);
      s_.lse[r] =
          a_.lse.template as<float>()[b * a_.lse.stride(0) +
                                      (head + r % n_.ratio) * a_.lse.stride(1) + s0 + r / n_.ratio];
    }
  }

  void add_keys(int64_t b, int64_t group, int64_t height, int64_t t0, int64_t t1) {
    const int64_t width = t1 - t0;
    const KeyPanel k = key_panel<T>(a_.k, b, t0, t1, group, s_.k);
    const KeyPanel v = key_panel<T>(a_.v, b, t0, t1, group, s_.v);
    against_keys(s_.q, k, s_.p, height, width);
    against_keys(s_.dout, v, s_.ds, height, width);
    for (int64_t r = 0; r < height; ++r) softmax_row(r, mask_.row(r / n_.ratio), width);
    if (wanted_.dkv) {
      add_product(s_.p, s_.dout, gradient_row(a_.dv, b, t0, group), a_.dv.stride(1), height, width);
      add_product(s_.ds, s_.q, gradient_row(a_.dk, b, t0, group), a_.dk.stride(1), height, width);
    }
    if (wanted_.dq) {
      gemm({.m = height,
            .n = n_.size,
            .k = width,
            .a = s_.ds,
            .b = k.data,
            .c = s_.dq,
            .lda = kKeyTile,
            .ldb = k.stride,
            .ldc = n_.size,
            .accumulate = true});
    }
  }

  // out [height, width] = rows keys^T
  void against_keys(const float* rows, const KeyPanel& keys, float* out, int64_t height,
                    int64_t width) {
    gemm({.m = height,
          .n = width,
          .k = n_.size,
          .a = rows,
          .b = keys.data,
          .c = out,
          .lda = n_.size,
          .ldb = keys.stride,
          .ldc = kKeyTile,
          .trans_b = true});
  }

  // out [width, D] += tile^T rows
  void add_product(const float* tile, const float* rows, float* out, int64_t ld, int64_t height,
                   int64_t width) {
    gemm({.m = width,
          .n = n_.size,
          .k = height,
          .a = tile,
          .b = rows,
          .c = out,
          .lda = kKeyTile,
          .ldb = n_.size,
          .ldc = ld,
          .trans_a = true,
          .accumulate = true});
  }

  void softmax_row(int64_t r, const TileMask::Row& row, int64_t width) {
    float* p = s_.p + r * kKeyTile;
    float* ds = s_.ds + r * kKeyTile;
    // An infinite lse marks a blind row: it contributes nothing.
    const bool blind = std::isinf(s_.lse[r]);
    const int64_t begin = blind ? 0 : row.begin, end = blind ? 0 : row.end;
    if (begin < end) {
      softmax_bwd_row(p + begin, ds + begin, p + begin, ds + begin, end - begin,
                      static_cast<float>(a_.scale), s_.lse[r], s_.delta[r], row.visible);
    }
    zero_outside(p, begin, end, width);
    zero_outside(ds, begin, end, width);
  }

  void store_dq(int64_t b, int64_t head, int64_t s0, int64_t s1) {
    for (int64_t r = 0; r < (s1 - s0) * n_.ratio; ++r) {
      T* dq = a_.dq.template as<T>() + b * a_.dq.stride(0) + (s0 + r / n_.ratio) * a_.dq.stride(1) +
              (head + r % n_.ratio) * a_.dq.stride(2);
      axpby_row(s_.dq + r * n_.size, static_cast<const T*>(nullptr), dq, n_.size, 1.0F, 0.0F);
    }
  }

  const AttentionBwdArgs& a_;
  const AttentionShape& n_;
  Scratch<T> s_;
  TileMask mask_;
  Wanted wanted_;
};

template <class T>
class Backward {
 public:
  Backward(const AttentionBwdArgs& a, const AttentionShape& n, char* memory, int64_t bytes)
      : a_(a), n_(n), memory_(memory), bytes_(bytes) {}

  // Every task owns what it adds to. One pass, a task per row and key head, forms all gradients
  // with five products; where that leaves threads idle, a pass over pieces of the keys and one over
  // the queries do, with seven.
  void run() {
    const int64_t pairs = n_.rows * n_.groups, threads = thread_count();
    const int64_t rounds = (pairs + threads - 1) / threads;
    if (7 * pairs >= 5 * rounds * threads) return keys_pass(n_.keys, {.dq = true, .dkv = true});
    const int64_t pieces = std::max<int64_t>(1, 4 * threads / std::max<int64_t>(pairs, 1));
    const int64_t piece = (n_.keys + pieces - 1) / pieces;
    keys_pass((piece + kKeyStep - 1) / kKeyStep * kKeyStep, {.dq = false, .dkv = true});
    queries_pass();
  }

 private:
  void tile(int64_t thread, Wanted wanted, int64_t pair, int64_t tile, int64_t first,
            int64_t last) {
    const int64_t s0 = tile * n_.positions;
    Tile<T>(a_, n_, memory_ + thread * bytes_, wanted)
        .run(pair / n_.groups, pair % n_.groups, s0, std::min(s0 + n_.positions, n_.queries), first,
             last);
  }

  // Pieces of `length` keys; without keys one piece writes the zeros of dq.
  void keys_pass(int64_t length, Wanted wanted) {
    const int64_t pieces =
        std::max<int64_t>(1, (n_.keys + length - 1) / std::max<int64_t>(length, 1));
    parallel_tasks(n_.rows * n_.groups * pieces, [&](int64_t i, int64_t thread) {
      const int64_t first = i % pieces * length;
      for (int64_t q = 0; q < n_.query_tiles(); ++q) {
        tile(thread, wanted, i / pieces, q, first, std::min(first + length, n_.keys));
      }
    });
  }

  void queries_pass() {
    const int64_t pairs = n_.rows * n_.groups;
    parallel_tasks(pairs * n_.query_tiles(), [&](int64_t i, int64_t thread) {
      const int64_t q = n_.query_tiles() - 1 - i / pairs;
      tile(thread, {.dq = true, .dkv = false}, i % pairs, q, 0, n_.keys);
    });
  }

  const AttentionBwdArgs& a_;
  const AttentionShape& n_;
  char* memory_;
  int64_t bytes_;
};

}  // namespace

int64_t attention_bwd_scratch_bytes(const AttentionBwdArgs& a) {
  const AttentionShape n(a.q, a.k);
  const int64_t bytes = a.q.dtype() == Dtype::bf16 ? Scratch<bf16>(nullptr, n).bytes
                                                   : Scratch<float>(nullptr, n).bytes;
  return bytes * thread_count();
}

void attention_bwd(Context& ctx, const AttentionBwdArgs& a) {
  const AttentionShape n(a.q, a.k);
  const ArenaScope scope(ctx.scratch);
  const int64_t bytes = attention_bwd_scratch_bytes(a);
  auto* memory = static_cast<char*>(scratch_block(ctx, bytes));
  by_dtype("attention_bwd", a.q.dtype(),
           [&]<class T>(T) { Backward<T>(a, n, memory, bytes / thread_count()).run(); });
}

}  // namespace lapidary::ops::cpu
