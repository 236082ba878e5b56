#include "lapidary/ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t rows, heads, n;
};
const Size kSizes[] = {{1, 1, 2},   {0, 2, 4},   {2, 0, 4},  {3, 5, 8},
                       {66, 2, 34}, {9, 3, 512}, {5, 2, 256}};

TEST(CpuRope, Table) {
  const std::vector<double> positions = {0, 1, 7, 1023, 131071, 1048575};
  const std::vector<double> freq = {1.0, static_cast<double>(0.1F), 0.0,
                                    static_cast<double>(1.2345e-4F)};
  const OwnedTensor p = from_values(Dtype::i64, {6}, positions);
  const OwnedTensor f = from_values(Dtype::f64, {4}, freq);
  const OwnedTensor cos = poisoned(Dtype::f32, {6, 4}), sin = poisoned(Dtype::f32, {6, 4});
  Context ctx = Context::make(Backend::cpu);
  ops::rope_table(ctx,
                  {.positions = p.get(), .inv_freq = f.get(), .cos = cos.get(), .sin = sin.get()});
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      const double exact = positions[static_cast<size_t>(i)] * freq[static_cast<size_t>(j)];
      const double angle = static_cast<double>(static_cast<float>(exact));
      EXPECT_EQ(at(cos.get(), i * 4 + j), static_cast<double>(static_cast<float>(std::cos(angle))));
      EXPECT_EQ(at(sin.get(), i * 4 + j), static_cast<double>(static_cast<float>(std::sin(angle))));
    }
  }
}

TEST(CpuRope, Forward) {
  Rng rng(121);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, heads, n] : kSizes) {
      for (const bool in_place : {false, true}) {
        Call call(d, strided);
        const OwnedTensor start = random(Dtype::f64, {rows, heads, n}, rng, 2.0);
        const int w = call.input(random(Dtype::f64, {n}, rng));
        const int cos = call.input_acc(random(Dtype::f64, {rows, n / 2}, rng));
        const int sin = call.input_acc(random(Dtype::f64, {rows, n / 2}, rng));
        const int y = in_place ? call.added("y", start, tolerance(d, n))
                               : call.written("y", start->shape(), tolerance(d, n));
        const int x = in_place ? y : call.input(start);
        const int r = call.written_acc("rstd", {rows * heads}, tolerance(Dtype::f32, n));
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::norm_rope(
              ctx, {.x = t[x], .w = t[w], .cos = t[cos], .sin = t[sin], .y = t[y], .rstd = t[r]});
        });
      }
    }
  });
}

// flags: accumulate_dx, dw, and dy in float or in place of dx.
TEST(CpuRope, Backward) {
  Rng rng(122);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, heads, n] : kSizes) {
      for (int flags = 0; flags < 16; ++flags) {
        const bool accumulate = (flags & 1) != 0, want_dw = (flags & 2) != 0;
        const bool wide = (flags & 4) != 0, in_place = (flags & 8) != 0;
        if (in_place && (accumulate || wide)) continue;
        Call call(d, strided);
        const Shape shape = {rows, heads, n};
        const int x = call.input(random(Dtype::f64, shape, rng));
        const int w = call.input(random(Dtype::f64, {n}, rng));
        const int cos = call.input_acc(random(Dtype::f64, {rows, n / 2}, rng));
        const int sin = call.input_acc(random(Dtype::f64, {rows, n / 2}, rng));
        const int r = call.input_acc(random(Dtype::f64, {rows * heads}, rng, 0.1, 1.0));
        const int dx = accumulate || in_place
                           ? call.added("dx", random(Dtype::f64, shape, rng), tolerance(d, n))
                           : call.written("dx", shape, tolerance(d, n));
        int dy = dx;
        if (!in_place) {
          const OwnedTensor value = random(Dtype::f64, shape, rng);
          dy = wide ? call.input_acc(value) : call.input(value);
        }
        const int dw = want_dw ? call.added_acc("dw", random(Dtype::f64, {n}, rng),
                                                tolerance(Dtype::f32, rows * heads))
                               : -1;
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::norm_rope_bwd(ctx, {.dy = t[dy],
                                   .x = t[x],
                                   .w = t[w],
                                   .cos = t[cos],
                                   .sin = t[sin],
                                   .rstd = t[r],
                                   .dx = t[dx],
                                   .accumulate_dx = accumulate,
                                   .dw = t[dw]});
        });
      }
    }
  });
}

}  // namespace
}  // namespace lapidary::test
