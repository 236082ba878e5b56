#include "lapidary/ops/norm.h"

#include <gtest/gtest.h>

#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t rows, n;
};
const Size kSizes[] = {{1, 1},    {0, 5},    {1, 33},   {7, 8},   {65, 17},
                       {130, 20}, {2, 1030}, {3, 2816}, {37, 256}};

TEST(CpuNorm, Forward) {
  Rng rng(111);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, n] : kSizes) {
      for (int flags = 0; flags < 8; ++flags) {
        Call call(d, strided);
        const int x = call.input(random(Dtype::f64, {rows, n}, rng, 3.0));
        const int w = (flags & 1) != 0 ? call.input(random(Dtype::f64, {n}, rng)) : -1;
        const int residual = (flags & 2) != 0 ? call.input(random(Dtype::f64, {rows, n}, rng)) : -1;
        const int y = call.written("y", {rows, n}, tolerance(d, n));
        const int r =
            (flags & 4) != 0 ? call.written_acc("rstd", {rows}, tolerance(Dtype::f32, n)) : -1;
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::rms_norm(ctx, {.x = t[x],
                              .w = t[w],
                              .residual = t[residual],
                              .y = t[y],
                              .rstd = t[r],
                              .eps = 1e-5});
        });
      }
    }
  });
}

TEST(CpuNorm, ForwardInPlace) {
  Rng rng(112);
  for_each_form([&](Dtype d, bool strided) {
    for (const bool over_residual : {false, true}) {
      Call call(d, strided);
      const OwnedTensor other = random(Dtype::f64, {9, 77}, rng);
      const int a = call.input(other);
      const int y = call.added("y", random(Dtype::f64, {9, 77}, rng), tolerance(d, 77));
      call.compare([=](Context& ctx, const Call::Args& t) {
        const int x = over_residual ? a : y, residual = over_residual ? y : a;
        ops::rms_norm(ctx, {.x = t[x], .residual = t[residual], .y = t[y]});
      });
    }
  });
}

// The gradients of both norms are right for any rstd: it is an input here.
TEST(CpuNorm, Backward) {
  Rng rng(113);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [rows, n] : kSizes) {
      for (int flags = 0; flags < 16; ++flags) {
        const bool weight = (flags & 1) != 0, accumulate = (flags & 2) != 0;
        const bool want_dw = (flags & 4) != 0, want_dx = (flags & 8) != 0;
        if (want_dw && !weight) continue;
        Call call(d, strided);
        const int dy = call.input(random(Dtype::f64, {rows, n}, rng));
        const int x = call.input(random(Dtype::f64, {rows, n}, rng));
        const int w = weight ? call.input(random(Dtype::f64, {n}, rng)) : -1;
        const int r = call.input_acc(random(Dtype::f64, {rows}, rng, 0.1, 1.0));
        int dx = -1, dw = -1;
        if (want_dx) {
          dx = accumulate ? call.added("dx", random(Dtype::f64, {rows, n}, rng), tolerance(d, n))
                          : call.written("dx", {rows, n}, tolerance(d, n));
        }
        if (want_dw) {
          dw = call.added_acc("dw", random(Dtype::f64, {n}, rng), tolerance(Dtype::f32, rows));
        }
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::rms_norm_bwd(ctx, {.dy = t[dy],
                                  .x = t[x],
                                  .w = t[w],
                                  .rstd = t[r],
                                  .dx = t[dx],
                                  .accumulate_dx = accumulate,
                                  .dw = t[dw]});
        });
      }
    }
  });
}

TEST(CpuNorm, BackwardInPlace) {
  Rng rng(114);
  for_each_form([&](Dtype d, bool strided) {
    Call call(d, strided);
    const int x = call.input(random(Dtype::f64, {70, 40}, rng));
    const int w = call.input(random(Dtype::f64, {40}, rng));
    const int r = call.input_acc(random(Dtype::f64, {70}, rng, 0.1, 1.0));
    const int dx = call.added("dx", random(Dtype::f64, {70, 40}, rng), tolerance(d, 40));
    const int dw = call.added_acc("dw", zeros(Dtype::f64, {40}), tolerance(Dtype::f32, 70));
    call.compare([=](Context& ctx, const Call::Args& t) {
      ops::rms_norm_bwd(
          ctx, {.dy = t[dx], .x = t[x], .w = t[w], .rstd = t[r], .dx = t[dx], .dw = t[dw]});
    });
  });
}

}  // namespace
}  // namespace lapidary::test
