#include <algorithm>
#include <string>

#include "lapidary/core/error.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/gemm.h"
#include "lapidary/ops/cpu/parallel.h"

namespace lapidary::ops::cpu {
namespace {

// Rows of one task. Segments are cut at this size: tasks become even, and the products that occur
// have a height of 256 or a multiple of the alignment below it, so that their kernels stay cached.
constexpr int64_t kTaskRows = 256;
constexpr int64_t kTaskColumns = 256;  // of a weight gradient

// The longest segment, after a check that the segments ascend and fit.
int64_t check_offsets(const char* op, const ConstTensor& offsets, int64_t rows) {
  const int32_t* o = offsets.as<int32_t>();
  int64_t longest = 0;
  for (int64_t e = 0; e + 1 < offsets.dim(0); ++e) {
    if (o[e] < 0 || o[e + 1] < o[e] || o[e + 1] > rows) {
      fail(op, "the segment of expert " + std::to_string(e) + " is [" + std::to_string(o[e]) +
                   ", " + std::to_string(o[e + 1]) + ") of " + std::to_string(rows) + " rows");
    }
    longest = std::max<int64_t>(longest, o[e + 1] - o[e]);
  }
  return longest;
}

const char* at(const ConstTensor& t, int64_t elements) {
  return static_cast<const char*>(t.data()) + elements * size_of(t.dtype());
}

// Tasks in parallel, each product on one thread; or one after the other, each product on all
// threads, when there are too few tasks to keep the threads busy.
template <class F>
void run_tasks(int64_t n, F&& f) {
  if (n >= 2 * thread_count()) return parallel_tasks(n, [&](int64_t i, int64_t) { f(i); });
  for (int64_t i = 0; i < n; ++i) f(i);
}

}  // namespace

int64_t grouped_matmul_scratch_bytes(const GroupedMatmulArgs&) { return 0; }
int64_t grouped_matmul_wgrad_scratch_bytes(const GroupedMatmulWgradArgs&) { return 0; }

void grouped_matmul(Context&, const GroupedMatmulArgs& a) {
  const int32_t* offsets = a.offsets.as<int32_t>();
  const int64_t longest = check_offsets("grouped_matmul", a.offsets, a.a.dim(0));
  const int64_t pieces = (longest + kTaskRows - 1) / kTaskRows;
  run_tasks(a.b.dim(0) * pieces, [&](int64_t i) {
    const int64_t e = i / pieces;
    const int64_t first = offsets[e] + i % pieces * kTaskRows;
    const int64_t last = std::min<int64_t>(first + kTaskRows, offsets[e + 1]);
    if (first >= last) return;
    gemm({.m = last - first,
          .n = a.out.dim(1),
          .k = a.a.dim(1),
          .a = at(a.a, first * a.a.stride(0)),
          .b = at(a.b, e * a.b.stride(0)),
          .c = const_cast<char*>(at(a.out, first * a.out.stride(0))),
          .lda = a.a.stride(0),
          .ldb = a.b.stride(1),
          .ldc = a.out.stride(0),
          .in = a.a.dtype(),
          .out = a.out.dtype(),
          .trans_b = a.trans_b});
  });
}

void grouped_matmul_wgrad(Context&, const GroupedMatmulWgradArgs& a) {
  const int32_t* offsets = a.offsets.as<int32_t>();
  check_offsets("grouped_matmul_wgrad", a.offsets, a.x.dim(0));
  const int64_t n = a.dw.dim(1);
  const int64_t pieces = (n + kTaskColumns - 1) / kTaskColumns;
  run_tasks(a.dw.dim(0) * pieces, [&](int64_t i) {
    const int64_t e = i / pieces;
    const int64_t column = i % pieces * kTaskColumns;
    for (int64_t first = offsets[e]; first < offsets[e + 1]; first += 2 * kTaskRows) {
      gemm({.m = std::min(kTaskColumns, n - column),
            .n = a.dw.dim(2),
            .k = std::min<int64_t>(2 * kTaskRows, offsets[e + 1] - first),
            .a = at(a.dy, first * a.dy.stride(0) + column),
            .b = at(a.x, first * a.x.stride(0)),
            .c = const_cast<char*>(at(a.dw, e * a.dw.stride(0) + column * a.dw.stride(1))),
            .lda = a.dy.stride(0),
            .ldb = a.x.stride(0),
            .ldc = a.dw.stride(1),
            .in = a.dy.dtype(),
            .out = Dtype::f32,
            .trans_a = true,
            .accumulate = true});
    }
  });
}

}  // namespace lapidary::ops::cpu
