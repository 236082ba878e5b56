#include <cmath>
#include <limits>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/rows.h"

namespace lapidary::ops::cpu {
namespace {

// Everything the step touches, each as one row of all elements (flat) or as [rows, columns].
struct Views {
  bool flat;
  Tensor param, master, m, v;
  ConstTensor grad;

  explicit Views(const AdamWArgs& a)
      : flat(all_contiguous(a.param, a.grad, a.m, a.v) &&
             (!a.master.defined() || a.master.contiguous())),
        param(view(a.param)),
        master(view(a.master)),
        m(view(a.m)),
        v(view(a.v)),
        grad(view(a.grad)) {}

 private:
  template <class View>
  View view(const View& t) const {
    return flat || !t.defined() ? t : t.rows();
  }
};

// Moments in accumulate_dtype, and a master copy or a param that is its own: in place.
void in_place(const Views& t, const AdamWStep& step) {
  by_dtype("adamw", t.param.dtype(), [&]<class T>(T) {
    T* p = t.param.as<T>();
    float* master = data_or_null<float>(t.master);
    const float* grad = t.grad.as<float>();
    float* m = t.m.as<float>();
    float* v = t.v.as<float>();
    for_pieces(t.param, t.flat, [&](int64_t row, int64_t column, int64_t count) {
      const auto at = [&](const ConstTensor& x) { return row_offset(x, t.flat, row) + column; };
      adamw_row(p + at(t.param), master == nullptr ? nullptr : master + at(t.master),
                grad + at(t.grad), m + at(t.m), v + at(t.v), count, step);
    });
  });
}

// `count` elements of a tensor from `first` on, in row-major order: f(offset, done, length) for
// every run of neighbours.
struct Span {
  bool flat;
  int64_t first, count;

  template <class F>
  void runs(const ConstTensor& t, F&& f) const {
    if (flat) return f(first, int64_t{0}, count);
    const int64_t columns = t.dim(1);
    for (int64_t done = 0; done < count;) {
      const int64_t column = (first + done) % columns;
      const int64_t length = std::min(count - done, columns - column);
      f((first + done) / columns * t.stride(0) + column, done, length);
      done += length;
    }
  }
  void read(const ConstTensor& t, float* to) const {
    by_dtype("adamw", t.dtype(), [&]<class T>(T) {
      runs(t, [&](int64_t offset, int64_t done, int64_t length) {
        axpby_row(t.as<T>() + offset, static_cast<const T*>(nullptr), to + done, length, 1.0F,
                  0.0F);
      });
    });
  }
  void write(const float* from, const Tensor& t) const {
    by_dtype("adamw", t.dtype(), [&]<class T>(T) {
      runs(t, [&](int64_t offset, int64_t done, int64_t length) {
        axpby_row(from + done, static_cast<const float*>(nullptr), t.as<T>() + offset, length, 1.0F,
                  0.0F);
      });
    });
  }
};

// One of the moments of a block.
struct Moment {
  const Tensor& kept;
  const Tensor& scale;
  bool is_signed;

  void read(const Span& span, float* to) const {
    if (kept.dtype() != Dtype::u8) return span.read(kept, to);
    const float* values = (is_signed ? kSignedCodes : kUnsignedCodes).value;
    const float largest = scale.as<float>()[span.first / kQuantBlock];
    span.runs(kept, [&](int64_t offset, int64_t done, int64_t length) {
      decode_row(kept.as<uint8_t>() + offset, values, largest, to + done, length);
    });
  }
  void write(const Span& span, const float* from) const {
    if (kept.dtype() != Dtype::u8) return span.write(from, kept);
    const float largest = largest_magnitude(from, span.count);
    const float inverse = inverse_scale(largest);
    scale.as<float>()[span.first / kQuantBlock] = inverse == 0.0F ? 0.0F : largest;
    const auto encode = is_signed ? encode_signed : encode_unsigned;
    span.runs(kept, [&](int64_t offset, int64_t done, int64_t length) {
      encode(from + done, inverse, kept.as<uint8_t>() + offset, length);
    });
  }
};

void write_at_random(const Span& span, const float* from, const Tensor& param, const AdamWArgs& a) {
  uint16_t random[kQuantBlock];
  rounding_block(a.seed, a.stream, rounding_counter(a.step, a.first_element + span.first), random);
  span.runs(param, [&](int64_t offset, int64_t done, int64_t length) {
    round_row(from + done, random + done, param.as<bf16>() + offset, length);
  });
}

// Anything else: block by block through f32.
void by_block(const Views& t, const AdamWArgs& a, const AdamWStep& step) {
  const Moment kept_m{t.m, a.m_scale, true}, kept_v{t.v, a.v_scale, false};
  const bool random = !a.master.defined() && a.param.dtype() == Dtype::bf16;
  const Tensor& source = a.master.defined() ? t.master : t.param;
  parallel_blocks(a.param.numel(), kQuantBlock, [&](int64_t first, int64_t last) {
    float w[kQuantBlock], g[kQuantBlock], m[kQuantBlock], v[kQuantBlock];
    const Span span{t.flat, first, last - first};
    span.read(source, w);
    span.read(t.grad, g);
    kept_m.read(span, m);
    kept_v.read(span, v);
    adamw_row(w, nullptr, g, m, v, span.count, step);
    kept_m.write(span, m);
    kept_v.write(span, v);
    if (random) return write_at_random(span, w, t.param, a);
    span.write(w, t.param);
    if (a.master.defined()) span.write(w, t.master);
  });
}

}  // namespace

void adamw(Context&, const AdamWArgs& a) {
  const double grad_scale = a.grad_scale * (a.scale.defined() ? a.scale.as<double>()[0] : 1.0);
  const AdamWStep step = adamw_step(a, grad_scale);
  if (!std::isfinite(step.grad_scale)) return;
  const Views views(a);
  const bool own = a.master.defined() || a.param.dtype() == Dtype::f32;
  if (own && a.m.dtype() == Dtype::f32)
    in_place(views, step);
  else
    by_block(views, a, step);
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

void clip_scale(Context&, const ClipScaleArgs& a) {
  double squares = 0.0;
  for (int64_t i = 0; i < a.sum.numel(); ++i) squares += a.sum.as<double>()[i];
  const double norm = std::sqrt(squares);
  a.norm.as<double>()[0] = norm;
  const double scale = a.max_norm > 0.0 ? std::min(1.0, a.max_norm / (norm + 1e-6)) : 1.0;
  a.scale.as<double>()[0] = std::isfinite(norm) ? scale : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace lapidary::ops::cpu
