#include "lapidary/ops/glu.h"

#include <cmath>
#include <numbers>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

const double kSlope = std::sqrt(2.0 / std::numbers::pi);
constexpr double kCubic = 0.044715;

// g(x) and g'(x) of the tanh form of GELU.
template <class T>
struct Gelu {
  T value, slope;
  explicit Gelu(T x) {
    const T t = std::tanh(kSlope * (x + kCubic * x * x * x));
    value = 0.5 * x * (1.0 + t);
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * kSlope * (1.0 + 3.0 * kCubic * x * x);
  }
};

template <class T>
void run(const GegluArgs& args) {
  const T* weight = elements<T>(args.row_weight);
  for (int64_t i = 0; i < args.gate.dim(0); ++i) {
    const T* gate = row<T>(args.gate, i);
    const T* up = row<T>(args.up, i);
    T* h = row<T>(args.h, i);
    const T w = weight != nullptr ? weight[i] : T{1.0};
    for (int64_t j = 0; j < args.gate.dim(1); ++j) h[j] = w * Gelu<T>(gate[j]).value * up[j];
  }
}

template <class T>
void run(const GegluBwdArgs& args) {
  const T* weight = elements<T>(args.row_weight);
  T* dweight = elements<T>(args.drow_weight);
  for (int64_t i = 0; i < args.gate.dim(0); ++i) {
    const T* dh = row<T>(args.dh, i);
    const T* gate = row<T>(args.gate, i);
    const T* up = row<T>(args.up, i);
    T* dgate = row<T>(args.dgate, i);
    T* dup = row<T>(args.dup, i);
    const T w = weight != nullptr ? weight[i] : T{1.0};
    T sum{};
    for (int64_t j = 0; j < args.gate.dim(1); ++j) {
      const Gelu<T> g(gate[j]);
      const T d = dh[j], u = up[j];  // read first: the outputs may lie on the inputs
      sum += d * g.value * u;
      dgate[j] = w * d * u * g.slope;
      dup[j] = args.accumulate_dup ? dup[j] + w * d * g.value : w * d * g.value;
    }
    if (dweight != nullptr) dweight[i] = sum;
  }
}

}  // namespace

void geglu(Context&, const GegluArgs& a) {
  with_scalar("geglu", a.gate.dtype(), [&]<class T>(T) { run<T>(a); });
}

void geglu_bwd(Context&, const GegluBwdArgs& a) {
  with_scalar("geglu_bwd", a.gate.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
