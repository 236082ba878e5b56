#include "lapidary/ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lapidary/ops/adamw.h"
#include "lapidary/ops/loss.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t rows, n;
};
const Size kSizes[] = {{1, 1}, {0, 3}, {5, 31}, {3, 17000}, {67, 16}};

int input_as(Call& call, Dtype d, const OwnedTensor& value) {
  return d == Dtype::f32 ? call.input_acc(value) : call.input(value);
}

TEST(CpuElementwise, Axpby) {
  Rng rng(141);
  for (const auto& [rows, n] : kSizes) {
    for (int types = 0; types < 8; ++types) {
      for (const bool strided : {false, true}) {
        for (const bool two : {false, true}) {
          const auto type = [&](int bit) { return (types & bit) != 0 ? Dtype::bf16 : Dtype::f32; };
          Call call(Dtype::bf16, strided);
          const int a = input_as(call, type(1), random(Dtype::f64, {rows, n}, rng));
          const int b = two ? input_as(call, type(2), random(Dtype::f64, {rows, n}, rng)) : -1;
          const int out = type(4) == Dtype::f32
                              ? call.written_acc("out", {rows, n}, tolerance(Dtype::f32))
                              : call.written("out", {rows, n}, tolerance(Dtype::bf16));
          call.compare([=](Context& ctx, const Call::Args& t) {
            ops::axpby(ctx, {.a = t[a], .b = t[b], .alpha = -1.5, .beta = 0.3, .out = t[out]});
          });
        }
      }
    }
  }
}

TEST(CpuElementwise, AxpbyInPlace) {
  Rng rng(142);
  for_each_form([&](Dtype d, bool strided) {
    for (const bool over_b : {false, true}) {
      Call call(d, strided);
      const int other = call.input_acc(random(Dtype::f64, {9, 333}, rng));
      const int out = call.added("out", random(Dtype::f64, {9, 333}, rng), tolerance(d));
      call.compare([=](Context& ctx, const Call::Args& t) {
        ops::axpby(ctx, {.a = t[over_b ? other : out],
                         .b = t[over_b ? out : other],
                         .alpha = 0.7,
                         .beta = 2.0,
                         .out = t[out]});
      });
    }
  });
}

TEST(CpuElementwise, ScaleBy) {
  Rng rng(143);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, n] : kSizes) {
      for (const bool in_place : {false, true}) {
        Call call(d, strided);
        const OwnedTensor start = random(Dtype::f64, {rows, n}, rng);
        const int s = call.input(random(Dtype::f64, {1}, rng));
        const int out = in_place ? call.added("out", start, tolerance(d))
                                 : call.written("out", {rows, n}, tolerance(d));
        const int a = in_place ? out : call.input(start);
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::scale_by(ctx, {.a = t[a], .s = t[s], .out = t[out]});
        });
      }
    }
  });
}

TEST(CpuElementwise, Softcap) {
  Rng rng(144);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, n] : kSizes) {
      for (const double cap : {0.0, 0.5, 30.0}) {
        Call call(d, strided);
        const int z = call.added("z", random(Dtype::f64, {rows, n}, rng, 40.0), tolerance(d));
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::softcap(ctx, {.logits = t[z], .softcap = cap});
        });
      }
    }
  });
}

// Each value by itself, small ones included: the relative error stays near a float's.
TEST(CpuElementwise, SoftcapIsRelativelyExact) {
  std::vector<double> x;
  for (double v = 1e-20; v < 1e6; v *= 1.07) {
    x.push_back(v);
    x.push_back(-v);
  }
  const OwnedTensor z = from_values(Dtype::f32, {1, static_cast<int64_t>(x.size())}, x);
  const OwnedTensor raw = cast(z.get(), Dtype::f64);
  Context ctx = Context::make(Backend::cpu);
  ops::softcap(ctx, {.logits = z.get(), .softcap = 30.0});
  for (int64_t i = 0; i < z->numel(); ++i) {
    const double expected = 30.0 * std::tanh(at(raw.get(), i) / 30.0);
    EXPECT_NEAR(at(z.get(), i), expected, 1e-6 * std::abs(expected));
  }
}

TEST(CpuAdamW, EqualsReference) {
  Rng rng(145);
  for_each_form([&](Dtype d, bool strided) {
    for (const Shape& shape : {Shape{1}, Shape{40, 3}, Shape{2, 3, 9000}, Shape{0, 4}}) {
      for (const bool master : {false, true}) {
        if (d == Dtype::bf16 && !master) continue;
        if (strided && shape.rank() > 2) continue;  // rows must be evenly spaced
        Call call(d, strided);
        const OwnedTensor value = random(Dtype::f64, shape, rng);
        const OwnedTensor square = random(Dtype::f64, shape, rng);
        for (int64_t i = 0; i < square->numel(); ++i) {
          const double v = at(square.get(), i);
          set(square.get(), i, i % 3 == 0 ? 0.0 : v * v);
        }
        const int grad = call.input_acc(random(Dtype::f64, shape, rng));
        const int p = call.added("param", value, tolerance(d));
        const int copy = master ? call.added_acc("master", value, tolerance(Dtype::f32)) : -1;
        const int m = call.added_acc("m", random(Dtype::f64, shape, rng), tolerance(Dtype::f32));
        const int v = call.added_acc("v", square, tolerance(Dtype::f32));
        for (const int64_t step : {1, 1000}) {
          call.compare([=](Context& ctx, const Call::Args& t) {
            ops::adamw(ctx, {.param = t[p],
                             .master = t[copy],
                             .grad = t[grad],
                             .m = t[m],
                             .v = t[v],
                             .grad_scale = 0.25,
                             .lr = 0.01,
                             .step = step});
          });
        }
      }
    }
  });
}

double sum_of_squares(Context& ctx, const ConstTensor& t) {
  const OwnedTensor sum = zeros(Dtype::f64, {1});
  ops::sum_of_squares(ctx, {.t = t, .sum = sum.get()});
  return at(sum.get(), 0);
}

TEST(CpuElementwise, SumOfSquares) {
  Rng rng(146);
  for (const Dtype d : {Dtype::f32, Dtype::bf16}) {
    for (const Shape& shape : {Shape{0}, Shape{1}, Shape{3, 50001}, Shape{5000, 3}}) {
      const OwnedTensor t = random(d, shape, rng);
      Context ctx = Context::make(Backend::cpu);
      double expected = 0.0;
      for (const double v : values(t.get())) expected += v * v;
      const double got = sum_of_squares(ctx, t.get());
      // Sums of positive terms in double: within one rounding for each.
      EXPECT_NEAR(got, expected, 0x1p-53 * expected * static_cast<double>(t->numel()));
      if (shape.rank() < 2) continue;
      const Spread wide = spread(t.get());
      EXPECT_NEAR(sum_of_squares(ctx, wide.view), expected, 1e-11 * expected);
    }
  }
}

}  // namespace
}  // namespace lapidary::test
