#include "lapidary/ops/random.h"

#include "lapidary/core/philox.h"
#include "lapidary/core/rng.h"
#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/parallel.h"

namespace lapidary::ops::cpu {

void fill_normal(Context&, const FillNormalArgs& a) {
  constexpr int64_t kBlock = 4096;
  by_dtype("fill_normal", a.t.dtype(), [&]<class T>(T) {
    T* t = a.t.as<T>();
    parallel_blocks(a.t.numel(), kBlock, [&](int64_t first, int64_t last) {
      Rng rng(a.seed, a.stream,
              static_cast<uint64_t>(a.first_element + first) * kCountersPerNormal);
      for (int64_t i = first; i < last; ++i) {
        const double value = a.deviation == 0.0 ? a.mean : a.mean + a.deviation * rng.normal();
        t[i] = T(static_cast<float>(value));
      }
    });
  });
}

}  // namespace lapidary::ops::cpu
