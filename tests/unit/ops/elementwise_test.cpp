#include "lapidary/ops/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>

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

}  // namespace
}  // namespace lapidary::test
