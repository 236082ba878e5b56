#include "lapidary/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

std::vector<int64_t> visible_keys(const MaskSpec& mask, int64_t b, int64_t s, int64_t keys) {
  std::vector<int64_t> visible;
  const MaskSpec::Range range = mask.key_range(b, s, keys);
  for (int64_t t = range.first; t < range.last; ++t) {
    if (mask.visible(b, s, t)) visible.push_back(t);
  }
  return visible;
}

// One query of one head: the output row and the logarithm of the sum of exponentials.
template <class T>
T attend(const AttentionArgs& args, int64_t b, int64_t s, int64_t h,
         const std::vector<int64_t>& visible) {
  const int64_t d = args.q.dim(3), g = h * args.k.dim(2) / args.q.dim(2);
  T* o = row<T>(args.o, b, s, h);
  if (visible.empty()) {
    std::fill(o, o + d, T{});
    return std::numeric_limits<double>::infinity();
  }
  const T* q = row<T>(args.q, b, s, h);
  std::vector<T> scores;
  double top = -std::numeric_limits<double>::infinity();
  for (const int64_t t : visible) {
    scores.push_back(args.scale * dot(q, row<T>(args.k, b, t, g), d));
    top = std::max(top, real_part(scores.back()));
  }
  T sum{};
  for (const T& score : scores) sum += std::exp(score - top);
  const T lse = top + std::log(sum);
  std::vector<T> out(static_cast<size_t>(d));
  for (size_t n = 0; n < visible.size(); ++n) {
    const T p = std::exp(scores[n] - lse);
    const T* v = row<T>(args.v, b, visible[n], g);
    for (int64_t c = 0; c < d; ++c) out[static_cast<size_t>(c)] += p * v[c];
  }
  std::copy(out.begin(), out.end(), o);
  return lse;
}

template <class T>
void run(const AttentionArgs& args) {
  for (int64_t b = 0; b < args.q.dim(0); ++b) {
    for (int64_t s = 0; s < args.q.dim(1); ++s) {
      const std::vector<int64_t> visible = visible_keys(args.mask, b, s, args.k.dim(1));
      for (int64_t h = 0; h < args.q.dim(2); ++h) {
        const T lse = attend<T>(args, b, s, h, visible);
        if (args.lse.defined()) row<T>(args.lse, b, h)[s] = lse;
      }
    }
  }
}

template <class T>
void attend_bwd(const AttentionBwdArgs& args, int64_t b, int64_t s, int64_t h,
                const std::vector<int64_t>& visible) {
  const int64_t d = args.q.dim(3), g = h * args.k.dim(2) / args.q.dim(2);
  const T* q = row<T>(args.q, b, s, h);
  const T* dout = row<T>(args.dout, b, s, h);
  const T delta = dot(dout, row<T>(args.o, b, s, h), d);
  const T lse = row<T>(args.lse, b, h)[s];
  std::vector<T> dq(static_cast<size_t>(d));
  for (const int64_t t : visible) {
    const T* k = row<T>(args.k, b, t, g);
    T* dk = row<T>(args.dk, b, t, g);
    T* dv = row<T>(args.dv, b, t, g);
    const T p = std::exp(args.scale * dot(q, k, d) - lse);
    const T ds = args.scale * p * (dot(dout, row<T>(args.v, b, t, g), d) - delta);
    for (int64_t c = 0; c < d; ++c) {
      dq[static_cast<size_t>(c)] += ds * k[c];
      dk[c] += ds * q[c];
      dv[c] += p * dout[c];
    }
  }
  std::copy(dq.begin(), dq.end(), row<T>(args.dq, b, s, h));
}

template <class T>
void run(const AttentionBwdArgs& args) {
  for (int64_t b = 0; b < args.q.dim(0); ++b) {
    for (int64_t s = 0; s < args.q.dim(1); ++s) {
      const std::vector<int64_t> visible = visible_keys(args.mask, b, s, args.k.dim(1));
      for (int64_t h = 0; h < args.q.dim(2); ++h) attend_bwd<T>(args, b, s, h, visible);
    }
  }
}

}  // namespace

void attention(Context&, const AttentionArgs& a) {
  with_scalar("attention", a.q.dtype(), [&]<class T>(T) { run<T>(a); });
}

void attention_bwd(Context&, const AttentionBwdArgs& a) {
  with_scalar("attention_bwd", a.q.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
