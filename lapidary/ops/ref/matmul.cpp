#include "lapidary/ops/matmul.h"

#include <algorithm>
#include <vector>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

// b' [K, N] without gaps, so that the inner loop runs along memory.
template <class T>
std::vector<T> packed(const ConstTensor& b, bool transposed) {
  const int64_t k = b.dim(transposed ? 1 : 0), n = b.dim(transposed ? 0 : 1);
  std::vector<T> out(static_cast<size_t>(k * n));
  for (int64_t i = 0; i < b.dim(0); ++i) {
    const T* from = row<T>(b, i);
    for (int64_t j = 0; j < b.dim(1); ++j) {
      out[static_cast<size_t>(transposed ? j * n + i : i * n + j)] = from[j];
    }
  }
  return out;
}

template <class T>
void run(const MatmulArgs& args) {
  const int64_t m = args.out.dim(0), n = args.out.dim(1);
  const int64_t inner = args.a.dim(args.trans_a ? 0 : 1);
  const std::vector<T> b = packed<T>(args.b, args.trans_b);
  std::vector<T> sum(static_cast<size_t>(n));
  for (int64_t i = 0; i < m; ++i) {
    std::fill(sum.begin(), sum.end(), T{});
    for (int64_t k = 0; k < inner; ++k) {
      const T a = args.trans_a ? row<T>(args.a, k)[i] : row<T>(args.a, i)[k];
      const T* from = b.data() + k * n;
      for (int64_t j = 0; j < n; ++j) sum[static_cast<size_t>(j)] += a * from[j];
    }
    T* out = row<T>(args.out, i);
    for (int64_t j = 0; j < n; ++j) {
      out[j] = args.accumulate ? out[j] + sum[static_cast<size_t>(j)] : sum[static_cast<size_t>(j)];
    }
  }
}

}  // namespace

void matmul(Context&, const MatmulArgs& a) {
  with_scalar("matmul", a.a.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
