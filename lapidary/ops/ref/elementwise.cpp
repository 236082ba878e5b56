#include "lapidary/ops/elementwise.h"

#include <cstring>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

template <class T>
void run(const AxpbyArgs& args) {
  for (int64_t i = 0; i < args.a.dim(0); ++i) {
    const T* a = row<T>(args.a, i);
    const T* b = args.b.defined() ? row<T>(args.b, i) : nullptr;
    T* out = row<T>(args.out, i);
    for (int64_t j = 0; j < args.a.dim(1); ++j) {
      out[j] = b != nullptr ? args.alpha * a[j] + args.beta * b[j] : args.alpha * a[j];
    }
  }
}

template <class T>
void run(const ScaleByArgs& args) {
  const T s = args.s.as<T>()[0];
  for (int64_t i = 0; i < args.a.dim(0); ++i) {
    const T* a = row<T>(args.a, i);
    T* out = row<T>(args.out, i);
    for (int64_t j = 0; j < args.a.dim(1); ++j) out[j] = s * a[j];
  }
}

}  // namespace

void axpby(Context&, const AxpbyArgs& a) {
  with_scalar("axpby", a.a.dtype(), [&]<class T>(T) { run<T>(a); });
}

void scale_by(Context&, const ScaleByArgs& a) {
  with_scalar("scale_by", a.a.dtype(), [&]<class T>(T) { run<T>(a); });
}

void fill_zero(Context&, const Tensor& t) {
  std::memset(t.data(), 0, static_cast<size_t>(t.bytes()));
}

}  // namespace lapidary::ops::ref
