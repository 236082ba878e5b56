#include "lapidary/ops/embedding.h"

#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/dispatch.h"
#include "lapidary/ops/ref/ref.h"

namespace lapidary::ops {
namespace {

void check(const EmbeddingArgs& a) {
  const Check c("embedding");
  c.rank("ids", a.ids, 1);
  c.dtype("ids", a.ids, Dtype::i64);
  c.rank("table", a.table, 2);
  c.shape("y", a.y, {a.ids.dim(0), a.table.dim(1)});
  c.that(a.y.dtype() == a.table.dtype() || a.y.dtype() == accumulate_dtype(a.table.dtype()),
         "y has a foreign element type");
}

void check(const EmbeddingBwdArgs& a) {
  const Check c("embedding_bwd");
  c.rank("ids", a.ids, 1);
  c.dtype("ids", a.ids, Dtype::i64);
  c.rank("dtable", a.dtable, 2);
  c.shape("dy", a.dy, {a.ids.dim(0), a.dtable.dim(1)});
  c.dtype("dtable", a.dtable, accumulate_dtype(a.dy.dtype()));
}

}  // namespace

void embedding(Context& ctx, const EmbeddingArgs& a) {
  check(a);
  dispatch(ctx, "embedding", a, {cpu::embedding, ref::embedding, cuda::embedding});
}

void embedding_bwd(Context& ctx, const EmbeddingBwdArgs& a) {
  check(a);
  dispatch(ctx, "embedding_bwd", a,
           {cpu::embedding_bwd, ref::embedding_bwd, cuda::embedding_bwd, nullptr,
            cuda::embedding_bwd_scratch_bytes});
}

}  // namespace lapidary::ops
