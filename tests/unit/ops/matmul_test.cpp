#include "lapidary/ops/matmul.h"

#include <gtest/gtest.h>

#include <thread>

#include "lapidary/core/error.h"
#include "lapidary/ops/cpu/gemm.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t m, n, k;
};
const Size kSizes[] = {{1, 1, 1},     {1, 33, 7},    {5, 1, 9},     {3, 4, 1},
                       {16, 16, 16},  {2, 3, 0},     {0, 4, 5},     {4, 0, 5},
                       {31, 65, 130}, {64, 64, 128}, {1, 257, 300}, {130, 70, 257}};

Shape stored(int64_t rows, int64_t columns, bool transposed) {
  return transposed ? Shape{columns, rows} : Shape{rows, columns};
}

TEST(Matmul, EqualsReference) {
  Rng rng(101);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [m, n, k] : kSizes) {
      for (int flags = 0; flags < 8; ++flags) {
        const bool ta = (flags & 1) != 0, tb = (flags & 2) != 0, wide = (flags & 4) != 0;
        SCOPED_TRACE(stored(m, k, ta).str() + " " + stored(k, n, tb).str());
        for (const bool accumulate : {false, true}) {
          Call call(d, strided);
          const int a = call.input(random(Dtype::f64, stored(m, k, ta), rng));
          const int b = call.input(random(Dtype::f64, stored(k, n, tb), rng));
          const Dtype out_type = wide ? Dtype::f32 : d;
          const double tol = tolerance(out_type, k + 1);
          int out = 0;
          if (accumulate) {
            out = call.added_as(out_type, "out", random(Dtype::f64, {m, n}, rng), tol);
          } else {
            out = wide ? call.written_acc("out", {m, n}, tol) : call.written("out", {m, n}, tol);
          }
          call.compare(
              [=](Context& ctx, const Call::Args& t) {
                ops::matmul(ctx, {.a = t[a],
                                  .b = t[b],
                                  .out = t[out],
                                  .trans_a = ta,
                                  .trans_b = tb,
                                  .accumulate = accumulate});
              },
              false);
        }
      }
    }
  });
}

// The loops that run where oneDNN does not.
TEST(Matmul, PlainLoopsEqualReference) {
  Rng rng(102);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [m, n, k] : kSizes) {
      if (m == 0 || n == 0) continue;
      for (int flags = 0; flags < 16; ++flags) {
        const bool ta = (flags & 1) != 0, tb = (flags & 2) != 0;
        const bool accumulate = (flags & 4) != 0;
        const Dtype out_type = (flags & 8) != 0 ? Dtype::f32 : d;
        const OwnedTensor a = cast(random(Dtype::f64, stored(m, k, ta), rng).get(), d);
        const OwnedTensor b = cast(random(Dtype::f64, stored(k, n, tb), rng).get(), d);
        const OwnedTensor start = random(out_type, {m, n}, rng);
        const OwnedTensor expected = cast(start.get(), Dtype::f64);
        const OwnedTensor a64 = cast(a.get(), Dtype::f64), b64 = cast(b.get(), Dtype::f64);
        Context ref = Context::make(Backend::ref, {0, 1 << 20});
        ops::matmul(ref, {.a = a64.get(),
                          .b = b64.get(),
                          .out = expected.get(),
                          .trans_a = ta,
                          .trans_b = tb,
                          .accumulate = accumulate});
        const Spread wa = spread(a.get()), wb = spread(b.get()), wc = spread(start.get());
        const ConstTensor va = strided ? wa.view : a.get(), vb = strided ? wb.view : b.get();
        const Tensor vc = strided ? wc.view : start.get();
        ops::cpu::plain_gemm({.m = m,
                              .n = n,
                              .k = k,
                              .a = va.data(),
                              .b = vb.data(),
                              .c = vc.data(),
                              .lda = va.stride(0),
                              .ldb = vb.stride(0),
                              .ldc = vc.stride(0),
                              .in = d,
                              .out = out_type,
                              .trans_a = ta,
                              .trans_b = tb,
                              .accumulate = accumulate});
        EXPECT_LE(peak_error(vc, expected.get()), tolerance(out_type, k + 1))
            << m << " " << n << " " << k << " flags " << flags;
      }
    }
  });
}

// More shapes than are kept, from several threads at once.
TEST(Matmul, ManyShapesOnManyThreads) {
  const auto work = [](int64_t seed) {
    Rng rng(static_cast<uint64_t>(seed));
    for (int64_t n = 1; n <= 700; ++n) {
      const OwnedTensor a = random(Dtype::f32, {2, 3}, rng), b = random(Dtype::f32, {3, n}, rng);
      const OwnedTensor c = poisoned(Dtype::f32, {2, n});
      Context ctx = Context::make(Backend::cpu);
      ops::matmul(ctx, {.a = a.get(), .b = b.get(), .out = c.get()});
      double sum = 0.0;
      for (int64_t l = 0; l < 3; ++l) sum += at(a.get(), 3 + l) * at(b.get(), l * n + n - 1);
      ASSERT_NEAR(at(c.get(), 2 * n - 1), sum, 1e-5 * (1.0 + std::abs(sum)));
    }
  };
  std::thread other(work, 1);
  work(2);
  other.join();
}

TEST(Matmul, RefusesDoubles) {
  Rng rng(1);
  const OwnedTensor a = random(Dtype::f64, {70, 3}, rng);
  const OwnedTensor c = random(Dtype::f64, {70, 70}, rng);
  Context ctx = Context::make(Backend::cpu);
  EXPECT_THROW(ops::matmul(ctx, {.a = a.get(), .b = a.get(), .out = c.get(), .trans_b = true}),
               Error);
}

}  // namespace
}  // namespace lapidary::test
