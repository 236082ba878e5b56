#include "lapidary/ops/adamw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "lapidary/core/error.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

using ops::AdamWArgs;
using ops::CodeTable;
using ops::kQuantBlock;
using ops::kSignedCodes;
using ops::kUnsignedCodes;
using ops::round_at_random;
using ops::rounding_bits;
using ops::rounding_counter;
using ops::rounding_position;
using ops::signed_code;
using ops::unsigned_code;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

enum class Kept { full, half, codes };
constexpr Kept kAll[] = {Kept::full, Kept::half, Kept::codes};

int64_t blocks_of(const Shape& shape) { return (shape.numel() + kQuantBlock - 1) / kQuantBlock; }

// The tensors of one step, by their index in a Call.
struct Step {
  int grad, param, master = -1, m, v, m_scale = -1, v_scale = -1;

  AdamWArgs args(const Call::Args& t) const {
    return {.param = t[param],
            .master = t[master],
            .grad = t[grad],
            .m = t[m],
            .v = t[v],
            .m_scale = t[m_scale],
            .v_scale = t[v_scale],
            .grad_scale = 0.25,
            .lr = 0.01,
            .stochastic_rounding = master < 0,
            .seed = 3,
            .stream = 5};
  }
};

// exact: outputs must be equal, not only as close as the arithmetic allows.
Step make_step(Call& call, Dtype d, const Shape& shape, Kept kept, bool master, Rng& rng,
               bool exact = false) {
  const auto within = [exact](Dtype stored) { return exact ? 0.0 : tolerance(stored); };
  const OwnedTensor value = random(Dtype::f64, shape, rng);
  Step s{};
  s.grad = call.input_acc(random(Dtype::f64, shape, rng));
  s.param = call.added("param", value, within(d));
  if (master) s.master = call.added_acc("master", value, within(Dtype::f32));
  if (kept == Kept::codes) {
    // One step between codes, of which the largest is 200 at least.
    const double step = exact ? 0.0 : 1.0 / 200;
    const Shape blocks{blocks_of(shape)};
    const OwnedTensor scale = random(Dtype::f64, blocks, rng, 0.1, 1.0);
    s.m = call.added_as(Dtype::u8, "m", random_int(Dtype::u8, shape, rng, 0, 256), step);
    s.v = call.added_as(Dtype::u8, "v", random_int(Dtype::u8, shape, rng, 64, 256), step);
    s.m_scale = call.added_acc("m_scale", scale, within(Dtype::f32));
    s.v_scale = call.added_acc("v_scale", scale, within(Dtype::f32));
    return s;
  }
  const OwnedTensor square = random(Dtype::f64, shape, rng);
  for (int64_t i = 0; i < square->numel(); ++i) {
    const double v = at(square.get(), i);
    set(square.get(), i, i % 3 == 1 ? 0.0 : 0.01 + v * v);
  }
  const Dtype type = kept == Kept::half ? Dtype::bf16 : Dtype::f32;
  s.m = call.added_as(type, "m", random(Dtype::f64, shape, rng), within(type));
  s.v = call.added_as(type, "v", square, within(type));
  return s;
}

TEST(CpuAdamW, EqualsReference) {
  Rng rng(145);
  for_each_form([&](Dtype d, bool strided) {
    for (const Shape& shape :
         {Shape{1}, Shape{40, 3}, Shape{3, 700}, Shape{2, 3, 3000}, Shape{0, 4}, Shape{1024}}) {
      if (strided && shape.rank() > 2) continue;  // rows must be evenly spaced
      for (const Kept kept : kAll) {
        for (const bool master : {false, true}) {
          Call call(d, strided);
          const Step s = make_step(call, d, shape, kept, master, rng);
          for (const int64_t step : {1, 1000}) {
            call.compare([=](Context& ctx, const Call::Args& t) {
              AdamWArgs args = s.args(t);
              args.step = step;
              ops::adamw(ctx, args);
            });
          }
        }
      }
    }
  });
}

TEST(CpuAdamW, ScalesTheGradientByATensor) {
  Rng rng(147);
  for (const Kept kept : kAll) {
    Call call(Dtype::bf16, false);
    const Step s = make_step(call, Dtype::bf16, {5, 300}, kept, true, rng);
    const int scale = call.integers(from_values(Dtype::f64, {1}, {0.3}));
    call.compare([=](Context& ctx, const Call::Args& t) {
      AdamWArgs args = s.args(t);
      args.scale = t[scale];
      ops::adamw(ctx, args);
    });
  }
}

// Both backends leave everything as it is, so that no rounding tells them apart.
TEST(CpuAdamW, AScaleThatIsNotFiniteChangesNothing) {
  Rng rng(148);
  for (const Dtype d : {Dtype::f32, Dtype::bf16}) {
    for (const Kept kept : kAll) {
      for (const bool master : {false, true}) {
        for (const double value : {kNaN, kInf, -kInf, 1e300}) {
          Call call(d, false);
          const Step s = make_step(call, d, {5, 300}, kept, master, rng, true);
          const int scale = call.integers(from_values(Dtype::f64, {1}, {value}));
          call.compare([=](Context& ctx, const Call::Args& t) {
            AdamWArgs args = s.args(t);
            args.scale = t[scale];
            ops::adamw(ctx, args);
          });
        }
      }
    }
  }
}

TEST(CpuAdamW, ZeroBytesAreZeroMoments) {
  Rng rng(149);
  for (const bool gradient : {false, true}) {
    Call call(Dtype::f32, false);
    Step s = make_step(call, Dtype::f32, {3, 300}, Kept::full, false, rng);
    s.grad = call.input_acc(random(Dtype::f64, {3, 300}, rng, gradient ? 1.0 : 0.0));
    s.m = call.added_as(Dtype::u8, "m", zeros(Dtype::u8, {3, 300}), 1.0 / 200);
    s.v = call.added_as(Dtype::u8, "v", zeros(Dtype::u8, {3, 300}), 1.0 / 200);
    s.m_scale = call.added_acc("m_scale", zeros(Dtype::f64, {4}), tolerance(Dtype::f32));
    s.v_scale = call.added_acc("v_scale", zeros(Dtype::f64, {4}), tolerance(Dtype::f32));
    call.compare([=](Context& ctx, const Call::Args& t) { ops::adamw(ctx, s.args(t)); });
  }
}

TEST(CpuAdamW, RefusesWhatDoesNotGoTogether) {
  Context ctx = Context::make(Backend::cpu);
  const OwnedTensor half = zeros(Dtype::bf16, {300}), full = zeros(Dtype::f32, {300}),
                    codes = zeros(Dtype::u8, {300}), scales = zeros(Dtype::f32, {2});
  const AdamWArgs good{.param = half.get(),
                       .master = full.get(),
                       .grad = full.get(),
                       .m = full.get(),
                       .v = full.get()};
  const auto refused = [&](const std::function<void(AdamWArgs&)>& change) {
    AdamWArgs args = good;
    change(args);
    EXPECT_THROW(ops::adamw(ctx, args), Error);
  };
  refused([](AdamWArgs& a) { a.master = {}; });
  refused([](AdamWArgs& a) { a.stochastic_rounding = true; });
  refused([&](AdamWArgs& a) { a.m = half.get(); });
  refused([&](AdamWArgs& a) { a.m = a.v = codes.get(); });
  refused([&](AdamWArgs& a) {
    a.m = a.v = codes.get();
    a.m_scale = a.v_scale = scales.get().slice(0, 0, 1);
  });
  refused([](AdamWArgs& a) { a.first_element = 8; });
  refused([](AdamWArgs& a) { a.step = 0; });
}

// A bf16 parameter without a master copy, and what its step is in f32.
struct Rounded {
  OwnedTensor start, grad, exact, rounded;
};
struct Bits {
  int64_t step = 1;
  uint64_t seed = 0, stream = 0;
};

OwnedTensor round_step(const OwnedTensor& start, const OwnedTensor& grad, const Bits& bits,
                       int64_t first, int64_t count) {
  OwnedTensor param = cast(start->slice(0, first, count), start->dtype());
  const OwnedTensor m = zeros(Dtype::f32, {count}), v = zeros(Dtype::f32, {count});
  Context ctx = Context::make(Backend::cpu);
  ops::adamw(ctx, {.param = param.get(),
                   .grad = grad->slice(0, first, count),
                   .m = m.get(),
                   .v = v.get(),
                   .lr = 2e-3,
                   .step = bits.step,
                   .stochastic_rounding = true,
                   .seed = bits.seed,
                   .stream = bits.stream,
                   .first_element = first});
  return param;
}

Rounded rounded_step(int64_t n, const Bits& bits) {
  Rng rng(150);
  Rounded r;
  r.start = random(Dtype::bf16, {n}, rng);
  r.grad = random(Dtype::f32, {n}, rng);
  r.exact = round_step(cast(r.start.get(), Dtype::f32), r.grad, bits, 0, n);
  r.rounded = round_step(r.start, r.grad, bits, 0, n);
  return r;
}

// Each element is one of the two neighbours, as its own bits say.
TEST(StochasticRounding, FollowsTheBitsOfEveryElement) {
  const Rounded r = rounded_step(2000, {.step = 7, .seed = 11, .stream = 13});
  for (int64_t i = 0; i < 2000; ++i) {
    const PhiloxBlock block = philox(11, 13, rounding_counter(7, i));
    const uint32_t bits = rounding_bits(block, rounding_position(i));
    const float exact = r.exact->as<float>()[i];
    EXPECT_EQ(r.rounded->as<bf16>()[i].bits, round_at_random(exact, bits)) << i;
  }
}

TEST(StochasticRounding, TheBitsOfElementsAreTheirOwn) {
  std::vector<uint64_t> seen;
  for (int64_t i = 0; i < 4096; ++i) {
    const uint64_t counter = rounding_counter(3, i);
    seen.push_back(counter * 8 + static_cast<uint64_t>(rounding_position(i)));
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
  EXPECT_LT(seen.back(), rounding_counter(4, 0) * 8);
}

// The sum of all rounding errors is within four deviations of zero. An error has the variance
// (x - below) (above - x).
TEST(StochasticRounding, IsUnbiased) {
  constexpr int64_t kCount = 1 << 18;
  for (const int64_t step : {1, 2}) {
    const Rounded r = rounded_step(kCount, {.step = step});
    double sum = 0.0, variance = 0.0;
    int64_t moved = 0;
    for (int64_t i = 0; i < kCount; ++i) {
      const float x = r.exact->as<float>()[i];
      const double below = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0xffff0000U);
      const double above =
          std::bit_cast<float>((std::bit_cast<uint32_t>(x) & 0xffff0000U) + 0x10000U);
      const double got = at(r.rounded.get(), i);
      EXPECT_TRUE(got == below || (got == above && x != below));
      sum += got - x;
      variance += (x - below) * (above - x);
      moved += got != at(r.start.get(), i) ? 1 : 0;
    }
    EXPECT_LT(std::abs(sum), 4.0 * std::sqrt(variance));
    EXPECT_GT(moved, kCount / 8);
  }
}

TEST(StochasticRounding, DependsOnSeedStreamAndStepAndNothingElse) {
  const Bits bits{.step = 4, .seed = 1, .stream = 2};
  const Rounded r = rounded_step(3000, bits);
  // In two shards.
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1024}, {1024, 1976}}) {
    const OwnedTensor part = round_step(r.start, r.grad, bits, first, count);
    EXPECT_TRUE(same_bits(part.get(), r.rounded->slice(0, first, count)));
  }
  for (const Bits& other :
       {Bits{.step = 4, .seed = 2, .stream = 2}, Bits{.step = 4, .seed = 1, .stream = 3}}) {
    EXPECT_FALSE(same_bits(rounded_step(3000, other).rounded.get(), r.rounded.get()));
  }
}

TEST(StochasticRounding, KeepsWhatIsNotANumber) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const uint32_t bits : {0U, 0xffffU}) {
    EXPECT_EQ(round_at_random(inf, bits), 0x7f80);
    EXPECT_EQ(round_at_random(-inf, bits), 0xff80);
    EXPECT_GT(round_at_random(std::bit_cast<float>(0x7f800001U), bits), 0x7f80);
    EXPECT_EQ(round_at_random(1.0F, bits), 0x3f80);
  }
}

TEST(Quantize, CodesOfTheirValues) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(signed_code(kSignedCodes.value[code]), code);
    EXPECT_EQ(unsigned_code(kUnsignedCodes.value[code]), code);
    if (code == 0) continue;
    EXPECT_GT(kSignedCodes.value[code], kSignedCodes.value[code - 1]);
    EXPECT_GT(kUnsignedCodes.value[code], kUnsignedCodes.value[code - 1]);
  }
  EXPECT_EQ(kSignedCodes.value[127], 0.0F);
  EXPECT_EQ(kSignedCodes.value[255], 1.0F);
  EXPECT_FLOAT_EQ(kSignedCodes.value[128], 5.5e-7F);
  EXPECT_FLOAT_EQ(kSignedCodes.value[0], -(1.0F - 0.45F / 64));
  EXPECT_EQ(kUnsignedCodes.value[0], 0.0F);
  EXPECT_FLOAT_EQ(kUnsignedCodes.value[1], 3.25e-7F);
  EXPECT_FLOAT_EQ(kUnsignedCodes.value[254], 1.0F - 0.45F / 128);
  EXPECT_EQ(kUnsignedCodes.value[255], 1.0F);
}

// |value of the code - x| exceeds the smallest distance there is by no more than rounding.
template <class Code>
void expect_nearest(const CodeTable& table, float x, Code code) {
  double best = 1.0;
  for (const float value : table.value) best = std::min(best, std::abs(double{value} - x));
  const double got = std::abs(double{table.value[code(x)]} - x);
  EXPECT_LE(got, best + 1e-6 * std::abs(x)) << x;
}

TEST(Quantize, CodesAreTheNearest) {
  for (double x = 1e-8; x <= 1.0; x *= 1.0007) {
    const auto value = static_cast<float>(x);
    expect_nearest(kSignedCodes, value, signed_code);
    expect_nearest(kSignedCodes, -value, signed_code);
    if (x > 1.7e-7) expect_nearest(kUnsignedCodes, value, unsigned_code);
  }
  EXPECT_EQ(signed_code(0.0F), 127);
  EXPECT_EQ(unsigned_code(0.0F), 0);
  // A scale's reciprocal is rounded: an element may seem to be a little above its block's scale.
  EXPECT_EQ(signed_code(1.000001F), 255);
  EXPECT_EQ(signed_code(-1.000001F), 0);
  EXPECT_EQ(unsigned_code(1.000001F), 255);
}

// docs/numerics.md: the root of a second moment never shrinks below 0.73 of itself.
TEST(Quantize, SecondMomentsNeverShrinkMuch) {
  for (double x = 1e-30; x <= 1.0; x *= 1.001) {
    const double kept = kUnsignedCodes.value[unsigned_code(static_cast<float>(x))];
    EXPECT_GT(std::sqrt(kept / x), 0.73) << x;
    if (x <= 0.1) continue;
    EXPECT_LT(std::abs(std::sqrt(kept / x) - 1.0), 0.018) << x;
  }
}

TEST(CpuAdamW, SumOfSquares) {
  Rng rng(146);
  for_each_form([&](Dtype d, bool strided) {
    for (const Shape& shape : {Shape{0}, Shape{1}, Shape{7, 50001}, Shape{5000, 3}, Shape{70000}}) {
      Call call(d, strided);
      const int t = call.input(random(Dtype::f64, shape, rng));
      // Sums of positive terms in double: within one rounding for each.
      const int sum = call.added_as(Dtype::f64, "sum", from_values(Dtype::f64, {1}, {0.5}),
                                    0x1p-53 * static_cast<double>(shape.numel() + 1));
      call.compare([=](Context& ctx, const Call::Args& a) {
        ops::sum_of_squares(ctx, {.t = a[t], .sum = a[sum]});
      });
    }
  });
}

TEST(CpuAdamW, ClipScale) {
  for (const double sum : {0.0, 4.0, 1e-20, 1e300}) {
    for (const double max_norm : {0.0, -1.0, 0.5, 2.0, 1e200}) {
      Call call(Dtype::f32, false);
      const int squares = call.integers(from_values(Dtype::f64, {1}, {sum}));
      const OwnedTensor start = from_values(Dtype::f64, {1}, {9.0});
      const int norm = call.added_as(Dtype::f64, "norm", start, 0x1p-52);
      const int scale = call.added_as(Dtype::f64, "scale", start, 0x1p-51);
      call.compare([=](Context& ctx, const Call::Args& t) {
        ops::clip_scale(
            ctx, {.sum = t[squares], .max_norm = max_norm, .norm = t[norm], .scale = t[scale]});
      });
    }
  }
}

TEST(CpuAdamW, ClipScaleByHand) {
  for (const Backend backend : {Backend::cpu, Backend::ref}) {
    Context ctx = Context::make(backend);
    const auto scale = [&](double sum, double max_norm) {
      const OwnedTensor squares = from_values(Dtype::f64, {1}, {sum});
      const OwnedTensor norm = zeros(Dtype::f64, {1}), out = zeros(Dtype::f64, {1});
      ops::clip_scale(
          ctx,
          {.sum = squares.get(), .max_norm = max_norm, .norm = norm.get(), .scale = out.get()});
      EXPECT_EQ(std::isfinite(at(norm.get(), 0)), std::isfinite(sum));
      return at(out.get(), 0);
    };
    EXPECT_EQ(scale(16.0, 1.0), 1.0 / (4.0 + 1e-6));
    EXPECT_EQ(scale(16.0, 5.0), 1.0);
    EXPECT_EQ(scale(16.0, 0.0), 1.0);
    for (const double max_norm : {0.0, 1.0}) {
      EXPECT_TRUE(std::isnan(scale(kInf, max_norm)));
      EXPECT_TRUE(std::isnan(scale(kNaN, max_norm)));
    }
  }
}

}  // namespace
}  // namespace lapidary::test
