#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"

namespace lapidary::ops::cpu {

void geglu(Context&, const GegluArgs& a) {
  const float* weight = data_or_null<float>(a.row_weight);
  by_dtype("geglu", a.gate.dtype(), [&]<class T>(T) {
    const T* gate = a.gate.as<T>();
    const T* up = a.up.as<T>();
    T* h = a.h.as<T>();
    parallel_for(a.gate.dim(0), [&](int64_t i) {
      geglu_row(gate + i * a.gate.stride(0), up + i * a.up.stride(0), h + i * a.h.stride(0),
                a.gate.dim(1), weight == nullptr ? 1.0F : weight[i]);
    });
  });
}

void geglu_bwd(Context&, const GegluBwdArgs& a) {
  const float* weight = data_or_null<float>(a.row_weight);
  float* dweight = data_or_null<float>(a.drow_weight);
  by_dtype("geglu_bwd", a.gate.dtype(), [&]<class T>(T) {
    const T* dh = a.dh.as<T>();
    const T* gate = a.gate.as<T>();
    const T* up = a.up.as<T>();
    T* dgate = a.dgate.as<T>();
    T* dup = a.dup.as<T>();
    parallel_for(a.gate.dim(0), [&](int64_t i) {
      const float sum = geglu_bwd_row(dh + i * a.dh.stride(0), gate + i * a.gate.stride(0),
                                      up + i * a.up.stride(0), dgate + i * a.dgate.stride(0),
                                      dup + i * a.dup.stride(0), a.gate.dim(1),
                                      weight == nullptr ? 1.0F : weight[i], a.accumulate_dup);
      if (dweight != nullptr) dweight[i] = sum;
    });
  });
}

}  // namespace lapidary::ops::cpu
