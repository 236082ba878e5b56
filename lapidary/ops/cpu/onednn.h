#pragma once

#include "lapidary/ops/cpu/gemm.h"

namespace lapidary::ops::cpu {

// gemm() through oneDNN; m, n, k > 0. False, with c untouched, when oneDNN has no kernel for this
// product on this processor (bf16 below AVX-512). Each thread keeps its own bounded store of
// primitives (one costs 0.3 ms to make) and one buffer for their temporary memory, which grows to
// the largest need and is used again.
bool onednn_gemm(const Gemm& g);

}  // namespace lapidary::ops::cpu
