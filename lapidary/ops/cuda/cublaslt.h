#pragma once

#include "lapidary/core/gpu.h"
#include "lapidary/ops/matmul.h"

// cuBLASLt, opened at run time: the program starts on machines without it, and the first product on
// the GPU says what is missing.
namespace lapidary::ops::cuda {

// Memory that algorithms may use, and the alignment that they expect of it.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr int64_t kWorkspaceAlignment = 256;
// What to take from an arena, whose pieces are 64-byte aligned, to have that.
constexpr int64_t kWorkspaceScratch = kWorkspaceBytes + kWorkspaceAlignment - 64;

// False for products that our own kernel does: empty or so small that any launch takes longer, and
// operands that the library cannot describe. Looks at shapes only, as a plan must.
bool worth_cublaslt(const MatmulArgs& a);

// The product by cuBLASLt, or false, with nothing done, if the library has no algorithm for it.
// workspace: kWorkspaceBytes, aligned. Threads may call it at the same time.
bool cublaslt_matmul(const MatmulArgs& a, void* workspace, gpu::Stream stream);

}  // namespace lapidary::ops::cuda
