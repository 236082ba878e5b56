#include "lapidary/ops/cuda/plan_loss.h"

#include <algorithm>

#include "lapidary/ops/cuda/cuda.h"

namespace lapidary::ops::cuda {
namespace {

constexpr int64_t kLogits = int64_t{768} << 20;  // bytes of a chunk's logits
constexpr int64_t kTile = 128;                   // rows that a tile of a large product covers

int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

LossPlan LossPlan::of(const LinearCrossEntropyArgs& a) {
  const int64_t tokens = a.x.dim(0), stride = (a.w.dim(0) + 3) / 4 * 4;
  int64_t fits = std::max<int64_t>(kLogits / std::max<int64_t>(stride * 4, 1), 1);
  if (fits > kTile) fits = fits / kTile * kTile;
  // Even chunks, but of whole tiles.
  const int64_t chunks = std::max<int64_t>((tokens + fits - 1) / fits, 1);
  const int64_t even = (tokens + chunks - 1) / chunks;
  const int64_t tiled = std::min((even + kTile - 1) / kTile * kTile, fits);
  return {.chunk = std::min(tiled, tokens), .stride = stride, .copies_rows = a.dw.defined()};
}

ChunkProducts ChunkProducts::of(const LinearCrossEntropyArgs& a, const LossPlan& plan,
                                int64_t first, int64_t count, void* logits, void* rows) {
  const Dtype dtype = a.x.dtype();
  const int64_t vocabulary = a.w.dim(0);
  const ConstTensor x =
      plan.copies_rows ? ConstTensor(rows, dtype, {count, a.x.dim(1)}) : a.x.slice(0, first, count);
  const Tensor l = Tensor(logits, Dtype::f32, {count, plan.stride}).slice(1, 0, vocabulary);
  ChunkProducts out{.logits = {.a = x, .b = a.w, .out = l, .trans_b = true}, .dx = {}, .dw = {}};
  const int64_t dl_stride = plan.stride * size_of(Dtype::f32) / size_of(dtype);
  const ConstTensor dl = ConstTensor(logits, dtype, {count, dl_stride}).slice(1, 0, vocabulary);
  if (a.dx.defined()) out.dx = {.a = dl, .b = a.w, .out = a.dx.slice(0, first, count)};
  if (a.dw.defined()) out.dw = {.a = dl, .b = x, .out = a.dw, .trans_a = true, .accumulate = true};
  return out;
}

int64_t linear_cross_entropy_scratch_bytes(const LinearCrossEntropyArgs& a) {
  if (a.x.dim(0) == 0) return 0;
  const LossPlan plan = LossPlan::of(a);
  const int64_t row = a.x.dim(1) * size_of(a.x.dtype());
  const int64_t own = rounded(a.x.dim(0) * size_of(Dtype::f64)) +
                      rounded(plan.chunk * plan.stride * size_of(Dtype::f32)) +
                      (plan.copies_rows ? rounded(plan.chunk * row) : 0);
  const auto p = ChunkProducts::of(a, plan, 0, plan.chunk, nullptr, nullptr);
  int64_t product = matmul_scratch_bytes(p.logits);
  if (a.dx.defined()) product = std::max(product, matmul_scratch_bytes(p.dx));
  if (a.dw.defined()) product = std::max(product, matmul_scratch_bytes(p.dw));
  return own + product;
}

}  // namespace lapidary::ops::cuda
