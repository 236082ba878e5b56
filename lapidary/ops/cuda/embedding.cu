#include "lapidary/core/gpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/rows.cuh"

namespace lapidary::ops::cuda {
namespace {

constexpr int kWarps = kFlatThreads / 32;

template <class T, class Y>
struct Forward {
  const int64_t* ids = nullptr;
  Rows<const T> table;
  Rows<Y> y;
  int64_t vocabulary = 0;
  float scale = 1.0F;
  int64_t chunks = 0, per_row = 1;
};

// The host has checked the ids; any other one reads nothing and gives a row of NaN.
template <class T, class Y, int kVec>
__global__ void __launch_bounds__(kFlatThreads) embedding_kernel(Forward<T, Y> p) {
  constexpr int kUnroll = 2;
  Chunk<T, kVec> from[kUnroll];
  int64_t row[kUnroll], column[kUnroll];
  float scale[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t chunk = flat_chunk<kUnroll>(u);
    row[u] = quotient(chunk, p.per_row);
    column[u] = (chunk - row[u] * p.per_row) * kVec;
    if (chunk >= p.chunks) continue;
    const int64_t id = p.ids[row[u]];
    const bool known = id >= 0 && id < p.vocabulary;
    scale[u] = known ? p.scale : nanf("");
    if (known) from[u].load(p.table.row(id) + column[u]);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (flat_chunk<kUnroll>(u) >= p.chunks) continue;
    float y[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) y[i] = scale[u] * from[u][i];
    store_chunk(p.y.row(row[u]) + column[u], y);
  }
}

template <class T, class Y, int kVec>
void forward(Context& ctx, const EmbeddingArgs& a) {
  const int64_t per_row = a.y.dim(1) / kVec, chunks = a.y.dim(0) * per_row;
  embedding_kernel<T, Y, kVec><<<flat_blocks(chunks, 2), kFlatThreads, 0, ctx.stream>>>(
      {.ids = data<int64_t>(a.ids),
       .table = rows_of<T>(a.table),
       .y = rows_of<Y>(a.y),
       .vocabulary = a.table.dim(0),
       .scale = static_cast<float>(a.scale),
       .chunks = chunks,
       .per_row = per_row});
  check_launch("embedding");
}

// Where the tokens of every id stand. Everything but the members starts as -1.
struct Occurrences {
  const int64_t* ids = nullptr;
  int64_t tokens = 0, vocabulary = 0, skip_id = -1;
  uint32_t* first = nullptr;     // [V] the first token of the id
  int32_t* repeats = nullptr;    // [V] how many tokens follow it
  int32_t* start = nullptr;      // [V] where the id's tokens begin in members, if it has repeats
  int32_t* last_used = nullptr;  // [1] of members, by the ids with repeats so far
  int32_t* members = nullptr;    // [T] tokens, ascending for each id

  __device__ bool counts(int64_t id) const { return id != skip_id && id >= 0 && id < vocabulary; }
  // True when token t is the one that stands for its id.
  __device__ bool leads(int64_t t, int64_t id) const {
    return counts(id) && first[id] == static_cast<uint32_t>(t);
  }
};

// Integers only: the order of these atomics does not show.
__global__ void __launch_bounds__(kFlatThreads) count_kernel(Occurrences o) {
  const int64_t t = flat_chunk<1>(0);
  if (t >= o.tokens) return;
  const int64_t id = o.ids[t];
  if (!o.counts(id)) return;
  atomicMin(o.first + id, static_cast<uint32_t>(t));
  atomicAdd(o.repeats + id, 1);
}

// A warp for each token; that of an id's first one lists them all. Where in `members` the list
// comes to lie depends on timing, its order does not.
__global__ void __launch_bounds__(kFlatThreads) list_kernel(Occurrences o) {
  constexpr int kUnroll = 8;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (token >= o.tokens) return;
  const int64_t id = o.ids[token];
  if (!o.leads(token, id)) return;
  const int32_t count = o.repeats[id] + 1;
  if (count == 1) return;
  int32_t start = 0;
  if (lane == 0) {
    start = atomicAdd(o.last_used, count) + 1;
    o.start[id] = start;
  }
  int32_t* list = o.members + __shfl_sync(0xffffffffU, start, 0);
  int32_t found = 0;
  for (int64_t base = token; found < count; base += 32 * kUnroll) {
    bool same[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t t = base + u * 32 + lane;
      same[u] = t < o.tokens && o.ids[t] == id;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const unsigned hits = __ballot_sync(0xffffffffU, same[u]);
      if (same[u]) {
        list[found + __popc(hits & ((1U << lane) - 1U))] =
            static_cast<int32_t>(base + u * 32 + lane);
      }
      found += __popc(hits);
    }
  }
}

template <class T>
struct Backward {
  Occurrences tokens;
  Rows<const T> dy;
  Rows<float> dtable;
  float scale = 1.0F;
  int64_t per_row = 1;
};

// The tokens of an id, added in order by the blocks (x) of its first token. Warps share the
// columns.
template <class T, int kVec>
__global__ void __launch_bounds__(kFlatThreads) embedding_bwd_kernel(Backward<T> p) {
  constexpr int kUnroll = 8;
  const Occurrences& o = p.tokens;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t token = blockIdx.x;
  const int64_t id = o.ids[token];
  if (!o.leads(token, id)) return;
  const int64_t chunk = (static_cast<int64_t>(blockIdx.y) * kWarps + warp) * 32 + lane;
  const bool inside = chunk < p.per_row;
  float* to = p.dtable.row(id) + chunk * kVec;
  Chunk<float, kVec> before;
  if (inside) before.load(to);
  float sum[kVec] = {};
  const int32_t count = o.repeats[id] + 1;
  const int32_t* list = count > 1 ? o.members + o.start[id] : nullptr;
  for (int32_t base = 0; base < count; base += 32) {
    const int32_t left = min(count - base, 32);
    int32_t member = static_cast<int32_t>(token);
    if (list != nullptr && lane < left) member = list[base + lane];
    for (int32_t first = 0; first < left; first += kUnroll) {
      Chunk<T, kVec> dy[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t t = __shfl_sync(0xffffffffU, member, first + u);
        if (inside && first + u < left) dy[u].load(p.dy.row(t) + chunk * kVec);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[i] += dy[u][i];
      }
    }
  }
  if (!inside) return;
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum[i] = before[i] + p.scale * sum[i];
  store_chunk(to, sum);
}

template <class T, int kVec>
void backward(Context& ctx, const EmbeddingBwdArgs& a, const Occurrences& tokens) {
  const int64_t per_row = a.dy.dim(1) / kVec;
  const dim3 blocks(static_cast<unsigned>(tokens.tokens),
                    static_cast<unsigned>(ceil_div(per_row, kFlatThreads)));
  embedding_bwd_kernel<T, kVec>
      <<<blocks, kFlatThreads, 0, ctx.stream>>>({.tokens = tokens,
                                                 .dy = rows_of<T>(a.dy),
                                                 .dtable = rows_of<float>(a.dtable),
                                                 .scale = static_cast<float>(a.scale),
                                                 .per_row = per_row});
  check_launch("embedding_bwd");
}

}  // namespace

void embedding(Context& ctx, const EmbeddingArgs& a) {
  if (a.y.numel() == 0) return;
  by_dtype("embedding", a.table.dtype(), [&]<class T>(T) {
    by_dtype("embedding", a.y.dtype(), [&]<class Y>(Y) {
      if (all_chunks_fit(kWide<T, Y>, a.table, a.y)) return forward<T, Y, kWide<T, Y>>(ctx, a);
      forward<T, Y, 1>(ctx, a);
    });
  });
}

void embedding_bwd(Context& ctx, const EmbeddingBwdArgs& a) {
  const int64_t tokens = a.ids.dim(0), vocabulary = a.dtable.dim(0);
  if (a.dy.numel() == 0 || vocabulary == 0) return;
  if (tokens > INT32_MAX) fail("embedding_bwd", "cannot take more than 2^31 tokens at once");
  const ArenaScope scope(ctx.scratch);
  auto* memory = data<int32_t>(ctx.scratch.alloc(Dtype::u8, {embedding_bwd_scratch_bytes(a)}));
  const Occurrences o = {.ids = data<int64_t>(a.ids),
                         .tokens = tokens,
                         .vocabulary = vocabulary,
                         .skip_id = a.skip_id,
                         .first = reinterpret_cast<uint32_t*>(memory),
                         .repeats = memory + vocabulary,
                         .start = memory + 2 * vocabulary + 1,
                         .last_used = memory + 2 * vocabulary,
                         .members = memory + 3 * vocabulary + 1};
  gpu::set_bytes(memory, 0xff, (2 * vocabulary + 1) * static_cast<int64_t>(sizeof(int32_t)),
                 ctx.stream);
  count_kernel<<<flat_blocks(tokens, 1), kFlatThreads, 0, ctx.stream>>>(o);
  check_launch("embedding_bwd");
  list_kernel<<<static_cast<unsigned>(ceil_div(tokens, kWarps)), kFlatThreads, 0, ctx.stream>>>(o);
  check_launch("embedding_bwd");
  by_dtype("embedding_bwd", a.dy.dtype(), [&]<class T>(T) {
    constexpr int kMost = kWide<T, float>;
    if (all_chunks_fit(kMost, a.dy, a.dtable)) return backward<T, kMost>(ctx, a, o);
    backward<T, 1>(ctx, a, o);
  });
}

}  // namespace lapidary::ops::cuda
