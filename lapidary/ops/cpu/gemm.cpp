#include "lapidary/ops/cpu/gemm.h"

#include <cstring>

#include "lapidary/ops/cpu/by_dtype.h"

#ifdef LAPIDARY_ONEDNN
#include "lapidary/ops/cpu/onednn.h"
#endif

namespace lapidary::ops::cpu {
namespace {

void clear(const Gemm& g) {
  const auto bytes = static_cast<size_t>(g.n * size_of(g.out));
  for (int64_t i = 0; i < g.m; ++i) {
    std::memset(static_cast<char*>(g.c) + i * g.ldc * size_of(g.out), 0, bytes);
  }
}

}  // namespace

void gemm(const Gemm& g) {
  by_dtype("gemm", g.in, [](auto) {});
  if (g.m == 0 || g.n == 0) return;
  if (g.k == 0) {
    if (!g.accumulate) clear(g);
    return;
  }
#ifdef LAPIDARY_ONEDNN
  if (onednn_gemm(g)) return;
#endif
  plain_gemm(g);
}

}  // namespace lapidary::ops::cpu
