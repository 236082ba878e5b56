#include "lapidary/ops/glu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t rows, n;
};
const Size kSizes[] = {{1, 1}, {0, 3}, {5, 31}, {3, 704}, {67, 16}};

TEST(CpuGeglu, Forward) {
  Rng rng(131);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, n] : kSizes) {
      for (const bool weighted : {false, true}) {
        Call call(d, strided);
        const int gate = call.input(random(Dtype::f64, {rows, n}, rng, 2.0));
        const int up = call.input(random(Dtype::f64, {rows, n}, rng));
        const int w = weighted ? call.input_acc(random(Dtype::f64, {rows}, rng)) : -1;
        const int h = call.written("h", {rows, n}, tolerance(d));
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::geglu(ctx, {.gate = t[gate], .up = t[up], .row_weight = t[w], .h = t[h]});
        });
      }
    }
  });
}

TEST(CpuGeglu, Backward) {
  Rng rng(132);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, n] : kSizes) {
      for (int flags = 0; flags < 8; ++flags) {
        const bool weighted = (flags & 1) != 0, accumulate = (flags & 2) != 0;
        const bool in_place = (flags & 4) != 0;
        if (in_place && accumulate) continue;
        Call call(d, strided);
        const Shape s = {rows, n};
        const int dh = call.input(random(Dtype::f64, s, rng));
        int gate = 0, up = 0, dgate = 0, dup = 0;
        if (in_place) {
          gate = dgate = call.added("dgate", random(Dtype::f64, s, rng, 2.0), tolerance(d));
          up = dup = call.added("dup", random(Dtype::f64, s, rng), tolerance(d));
        } else {
          gate = call.input(random(Dtype::f64, s, rng, 2.0));
          up = call.input(random(Dtype::f64, s, rng));
          dgate = call.written("dgate", s, tolerance(d));
          dup = accumulate ? call.added("dup", random(Dtype::f64, s, rng), tolerance(d))
                           : call.written("dup", s, tolerance(d));
        }
        const int w = weighted ? call.input_acc(random(Dtype::f64, {rows}, rng)) : -1;
        const int dw =
            weighted ? call.written_acc("drow_weight", {rows}, tolerance(Dtype::f32, n)) : -1;
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::geglu_bwd(ctx, {.dh = t[dh],
                               .gate = t[gate],
                               .up = t[up],
                               .row_weight = t[w],
                               .dgate = t[dgate],
                               .dup = t[dup],
                               .accumulate_dup = accumulate,
                               .drow_weight = t[dw]});
        });
      }
    }
  });
}

// g and g' over the whole range of float: no NaN, no lost tail. With g = x sigmoid(y) the rounding
// of y, a chain of 4 operations, passes into the exponential: a relative error of 4 eps (1 + |y|)
// with eps = 2^-24. The sigmoid stops falling at y = -40, x at -12, y' at 33: what is left there.
TEST(CpuGeglu, WholeRange) {
  std::vector<double> x;
  for (double v = -20.0; v <= 20.0; v += 0.0173) x.push_back(v);
  for (double v = 1e-30; v < 3e38; v *= 7.3) {
    x.push_back(v);
    x.push_back(-v);
  }
  const auto n = static_cast<int64_t>(x.size());
  const OwnedTensor gate = cast(from_values(Dtype::f64, {1, n}, x).get(), Dtype::f32);
  const OwnedTensor one = zeros(Dtype::f32, {1, n}), value = poisoned(Dtype::f32, {1, n});
  const OwnedTensor slope = poisoned(Dtype::f32, {1, n}), dup = poisoned(Dtype::f32, {1, n});
  fill(one.get(), 1.0);
  Context ctx = Context::make(Backend::cpu);
  ops::geglu(ctx, {.gate = gate.get(), .up = one.get(), .h = value.get()});
  ops::geglu_bwd(ctx, {.dh = one.get(),
                       .gate = gate.get(),
                       .up = one.get(),
                       .dgate = slope.get(),
                       .dup = dup.get()});
  const double value_floor = 12.0 * std::exp(-40.0), slope_floor = 33.0 * value_floor;
  const double c = 2.0 * std::sqrt(2.0 / std::numbers::pi);
  for (int64_t i = 0; i < n; ++i) {
    const double v = at(gate.get(), i);
    const double y = c * (v + 0.044715 * v * v * v);
    const double dy = c * (1.0 + 3.0 * 0.044715 * v * v);
    const double s = 1.0 / (1.0 + std::exp(-y));
    const double relative = 4.0 * 0x1p-24 * (1.0 + std::min(std::abs(y), 40.0));
    const double g = v * s;
    EXPECT_NEAR(at(value.get(), i), g, std::max(relative * std::abs(g), value_floor)) << v;
    EXPECT_NEAR(at(dup.get(), i), g, std::max(relative * std::abs(g), value_floor)) << v;
    const double tail = std::abs(y) > 700.0 ? 0.0 : v * dy * s / (1.0 + std::exp(y));
    const double bound = relative * (s + std::abs(tail));
    EXPECT_NEAR(at(slope.get(), i), s + tail, std::max(bound, slope_floor)) << v;
  }
}

}  // namespace
}  // namespace lapidary::test
