#include "lapidary/ops/embedding.h"

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

int64_t checked_id(const char* op, const ConstTensor& ids, int64_t t, int64_t rows) {
  const int64_t id = ids.as<int64_t>()[t];
  if (id >= 0 && id < rows) return id;
  fail(op,
       "id " + std::to_string(id) + " at position " + std::to_string(t) + " is outside the table",
       "ids lie in 0 .. " + std::to_string(rows - 1));
}

template <class T>
void run(const EmbeddingArgs& args) {
  for (int64_t t = 0; t < args.ids.dim(0); ++t) {
    const T* from = row<T>(args.table, checked_id("embedding", args.ids, t, args.table.dim(0)));
    T* y = row<T>(args.y, t);
    for (int64_t j = 0; j < args.y.dim(1); ++j) y[j] = args.scale * from[j];
  }
}

template <class T>
void run(const EmbeddingBwdArgs& args) {
  for (int64_t t = 0; t < args.ids.dim(0); ++t) {
    if (args.ids.as<int64_t>()[t] == args.skip_id) continue;
    const int64_t id = checked_id("embedding_bwd", args.ids, t, args.dtable.dim(0));
    const T* dy = row<T>(args.dy, t);
    T* to = row<T>(args.dtable, id);
    for (int64_t j = 0; j < args.dy.dim(1); ++j) to[j] += args.scale * dy[j];
  }
}

}  // namespace

void embedding(Context&, const EmbeddingArgs& a) {
  with_scalar("embedding", a.table.dtype(), [&]<class T>(T) { run<T>(a); });
}

void embedding_bwd(Context&, const EmbeddingBwdArgs& a) {
  with_scalar("embedding_bwd", a.dy.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
