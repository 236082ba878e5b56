#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/gemm.h"

namespace lapidary::ops::cpu {

void matmul(Context&, const MatmulArgs& a) {
  gemm({.m = a.out.dim(0),
        .n = a.out.dim(1),
        .k = a.a.dim(a.trans_a ? 0 : 1),
        .a = a.a.data(),
        .b = a.b.data(),
        .c = a.out.data(),
        .lda = a.a.stride(0),
        .ldb = a.b.stride(0),
        .ldc = a.out.stride(0),
        .in = a.a.dtype(),
        .out = a.out.dtype(),
        .trans_a = a.trans_a,
        .trans_b = a.trans_b,
        .accumulate = a.accumulate});
}

int64_t matmul_scratch_bytes(const MatmulArgs&) { return 0; }

}  // namespace lapidary::ops::cpu
