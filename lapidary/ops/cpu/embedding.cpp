#include <string>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"

namespace lapidary::ops::cpu {
namespace {

void check_ids(const char* op, const ConstTensor& ids, int64_t vocabulary, int64_t skip) {
  const int64_t* id = ids.as<int64_t>();
  for (int64_t t = 0; t < ids.dim(0); ++t) {
    if ((id[t] >= 0 && id[t] < vocabulary) || id[t] == skip) continue;
    fail(op, "token id " + std::to_string(id[t]) + " is outside the table of " +
                 std::to_string(vocabulary) + " rows");
  }
}

}  // namespace

void embedding(Context&, const EmbeddingArgs& a) {
  check_ids("embedding", a.ids, a.table.dim(0), 0);
  const int64_t* ids = a.ids.as<int64_t>();
  const auto scale = static_cast<float>(a.scale);
  by_dtype("embedding", a.table.dtype(), [&]<class T>(T) {
    const T* table = a.table.as<T>();
    by_dtype("embedding", a.y.dtype(), [&]<class Y>(Y) {
      Y* y = a.y.as<Y>();
      parallel_for(a.ids.dim(0), [&](int64_t t) {
        axpby_row(table + ids[t] * a.table.stride(0), static_cast<const T*>(nullptr),
                  y + t * a.y.stride(0), a.table.dim(1), scale, 0.0F);
      });
    });
  });
}

void embedding_bwd(Context&, const EmbeddingBwdArgs& a) {
  if (a.dtable.dim(1) == 0) return;
  check_ids("embedding_bwd", a.ids, a.dtable.dim(0), a.skip_id);
  const int64_t* ids = a.ids.as<int64_t>();
  const auto scale = static_cast<float>(a.scale);
  float* dtable = a.dtable.as<float>();
  by_dtype("embedding_bwd", a.dy.dtype(), [&]<class T>(T) {
    const T* dy = a.dy.as<T>();
    // Each share owns columns: repeated ids are added in token order, without a race.
    const int64_t width = (a.dtable.dim(1) + thread_count() - 1) / thread_count();
    const int64_t share = (width + 15) / 16 * 16;
    parallel_blocks(a.dtable.dim(1), share, [&](int64_t first, int64_t last) {
      for (int64_t t = 0; t < a.ids.dim(0); ++t) {
        if (ids[t] == a.skip_id) continue;
        float* row = dtable + ids[t] * a.dtable.stride(0) + first;
        axpby_row(row, dy + t * a.dy.stride(0) + first, row, last - first, 1.0F, scale);
      }
    });
  });
}

}  // namespace lapidary::ops::cpu
