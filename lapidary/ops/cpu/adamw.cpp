#include <cmath>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/rows.h"

namespace lapidary::ops::cpu {
namespace {

AdamWStep constants(const AdamWArgs& a) {
  const auto t = static_cast<double>(a.step);
  return {.grad_scale = static_cast<float>(a.grad_scale),
          .beta1 = static_cast<float>(a.beta1),
          .one_minus_beta1 = static_cast<float>(1.0 - a.beta1),
          .beta2 = static_cast<float>(a.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - a.beta2),
          .decay = static_cast<float>(1.0 - a.lr * a.weight_decay),
          .rate = static_cast<float>(a.lr / (1.0 - std::pow(a.beta1, t))),
          .v_factor = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(a.beta2, t))),
          .eps = static_cast<float>(a.eps)};
}

}  // namespace

void adamw(Context&, const AdamWArgs& a) {
  const AdamWStep step = constants(a);
  const bool flat =
      all_contiguous(a.param, a.grad, a.m, a.v) && (!a.master.defined() || a.master.contiguous());
  const auto view = [flat]<class View>(const View& t) {
    return flat || !t.defined() ? t : t.rows();
  };
  const Tensor param = view(a.param), master = view(a.master), m = view(a.m), v = view(a.v);
  const ConstTensor grad = view(a.grad);
  by_dtype("adamw", a.param.dtype(), [&]<class T>(T) {
    T* p = param.as<T>();
    float* master_data = data_or_null<float>(master);
    const float* grad_data = grad.as<float>();
    float* m_data = m.as<float>();
    float* v_data = v.as<float>();
    for_pieces(param, flat, [&](int64_t row, int64_t column, int64_t count) {
      const auto at = [&](const ConstTensor& t) { return row_offset(t, flat, row) + column; };
      adamw_row(p + at(param), master_data == nullptr ? nullptr : master_data + at(master),
                grad_data + at(grad), m_data + at(m), v_data + at(v), count, step);
    });
  });
}

void sum_of_squares(Context&, const SumOfSquaresArgs& a) {
  const ConstTensor& t = a.t;
  constexpr int64_t kBatch = 256;  // pieces whose sums wait on the stack to be added in order
  const bool flat = t.contiguous();
  const ConstTensor view = flat ? t : t.rows();
  const int64_t columns = flat ? t.numel() : view.dim(1);
  const int64_t pieces = (columns + kPiece - 1) / kPiece;
  const int64_t all = (flat ? 1 : view.dim(0)) * pieces;
  double total = 0.0;
  by_dtype("sum_of_squares", t.dtype(), [&]<class T>(T) {
    const T* x = view.as<T>();
    for (int64_t first = 0; first < all; first += kBatch) {
      double sums[kBatch] = {};
      const int64_t count = std::min(kBatch, all - first);
      parallel_for(count, [&](int64_t i) {
        const int64_t row = (first + i) / pieces;
        const int64_t column = (first + i) % pieces * kPiece;
        sums[i] = sum_squares_double(x + row_offset(view, flat, row) + column,
                                     std::min(kPiece, columns - column));
      });
      for (int64_t i = 0; i < count; ++i) total += sums[i];
    }
  });
  a.sum.as<double>()[0] += total;
}

}  // namespace lapidary::ops::cpu
