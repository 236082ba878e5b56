#include <algorithm>
#include <cstring>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/rows.h"

namespace lapidary::ops::cpu {
namespace {

template <class A, class B, class O>
void axpby_typed(const ConstTensor& a, const ConstTensor& b, double alpha, double beta,
                 const Tensor& out) {
  const A* a_data = a.as<A>();
  const B* b_data = data_or_null<B>(b);
  O* out_data = out.as<O>();
  const auto fa = static_cast<float>(alpha);
  const auto fb = static_cast<float>(beta);
  const bool flat = all_contiguous(a, out) && (b_data == nullptr || b.contiguous());
  for_pieces(a, flat, [&](int64_t row, int64_t column, int64_t count) {
    const B* b_row = b_data == nullptr ? nullptr : b_data + row_offset(b, flat, row) + column;
    axpby_row(a_data + row_offset(a, flat, row) + column, b_row,
              out_data + row_offset(out, flat, row) + column, count, fa, fb);
  });
}

}  // namespace

void axpby(Context&, const AxpbyArgs& a) {
  const Dtype b_type = a.b.defined() ? a.b.dtype() : a.a.dtype();
  by_dtype("axpby", a.a.dtype(), [&]<class A>(A) {
    by_dtype("axpby", b_type, [&]<class B>(B) {
      by_dtype("axpby", a.out.dtype(),
               [&]<class O>(O) { axpby_typed<A, B, O>(a.a, a.b, a.alpha, a.beta, a.out); });
    });
  });
}

void scale_by(Context&, const ScaleByArgs& a) {
  double s = 0.0;
  by_dtype("scale_by", a.s.dtype(),
           [&]<class T>(T) { s = static_cast<double>(static_cast<float>(a.s.as<T>()[0])); });
  by_dtype("scale_by", a.a.dtype(),
           [&]<class T>(T) { axpby_typed<T, T, T>(a.a, {}, s, 0.0, a.out); });
}

void fill_zero(Context&, const Tensor& t) {
  constexpr int64_t kBytes = int64_t{1} << 20;
  auto* bytes = static_cast<char*>(t.data());
  parallel_for((t.bytes() + kBytes - 1) / kBytes, [&](int64_t i) {
    const int64_t count = std::min(kBytes, t.bytes() - i * kBytes);
    std::memset(bytes + i * kBytes, 0, static_cast<size_t>(count));
  });
}

void softcap(Context&, const SoftcapArgs& a) {
  if (a.softcap == 0.0) return;
  by_dtype("softcap", a.logits.dtype(), [&]<class T>(T) {
    T* z = a.logits.as<T>();
    const bool flat = a.logits.contiguous();
    for_pieces(a.logits, flat, [&](int64_t row, int64_t column, int64_t count) {
      softcap_row(z + row_offset(a.logits, flat, row) + column, count,
                  static_cast<float>(a.softcap));
    });
  });
}

}  // namespace lapidary::ops::cpu
