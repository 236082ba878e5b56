#include "lapidary/ops/random.h"

#include "lapidary/core/philox.h"
#include "lapidary/core/rng.h"
#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {

void fill_normal(Context&, const FillNormalArgs& a) {
  with_scalar("fill_normal", a.t.dtype(), [&]<class T>(T) {
    Rng rng(a.seed, a.stream, static_cast<uint64_t>(a.first_element) * kCountersPerNormal);
    for (int64_t i = 0; i < a.t.numel(); ++i) {
      a.t.as<T>()[i] = a.deviation == 0.0 ? a.mean : a.mean + a.deviation * rng.normal();
    }
  });
}

}  // namespace lapidary::ops::ref
