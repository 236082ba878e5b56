#include <gtest/gtest.h>

#include "lapidary/ops/elementwise.h"
#include "lapidary/ops/embedding.h"
#include "lapidary/ops/moe.h"
#include "lapidary/ops/norm.h"
#include "tests/unit/ops/against_ref.h"

// Operations between the residual stream, in the accumulate dtype, and tensors of the model's
// dtype.
namespace lapidary::test {
namespace {

constexpr int64_t kRows = 67, kSize = 45;

struct Mixed {
  bool x_acc, y_acc;
};
const Mixed kMixed[] = {{true, false}, {false, true}, {true, true}};

TEST(CpuStream, NormForward) {
  Rng rng(301);
  for_each_form([&](Dtype d, bool strided) {
    for (const Mixed& m : kMixed) {
      for (const bool add : {false, true}) {
        Call call(d, strided);
        const OwnedTensor x_value = random(Dtype::f64, {kRows, kSize}, rng, 3.0);
        const OwnedTensor base = random(Dtype::f64, {kRows, kSize}, rng);
        const int x = m.x_acc ? call.input_acc(x_value) : call.input(x_value);
        const int w = call.input(random(Dtype::f64, {kSize}, rng));
        const int residual = !add ? -1 : m.y_acc ? call.input_acc(base) : call.input(base);
        const double bound = tolerance(m.y_acc ? Dtype::f32 : d, kSize);
        const int y = m.y_acc ? call.written_acc("y", {kRows, kSize}, bound)
                              : call.written("y", {kRows, kSize}, bound);
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::rms_norm(ctx, {.x = t[x], .w = t[w], .residual = t[residual], .y = t[y]});
        });
      }
    }
  });
}

TEST(CpuStream, NormBackward) {
  Rng rng(302);
  for_each_form([&](Dtype d, bool strided) {
    for (int types = 1; types < 8; ++types) {
      const bool x_acc = (types & 1) != 0, dy_acc = (types & 2) != 0, dx_acc = (types & 4) != 0;
      Call call(d, strided);
      const OwnedTensor x_value = random(Dtype::f64, {kRows, kSize}, rng);
      const OwnedTensor dy_value = random(Dtype::f64, {kRows, kSize}, rng);
      const OwnedTensor start = random(Dtype::f64, {kRows, kSize}, rng);
      const int x = x_acc ? call.input_acc(x_value) : call.input(x_value);
      const int dy = dy_acc ? call.input_acc(dy_value) : call.input(dy_value);
      const int w = call.input(random(Dtype::f64, {kSize}, rng));
      const int r = call.input_acc(random(Dtype::f64, {kRows}, rng, 0.1, 1.0));
      const double bound = tolerance(dx_acc ? Dtype::f32 : d, kSize);
      const int dx = dx_acc ? call.added_acc("dx", start, bound) : call.added("dx", start, bound);
      const int dw =
          call.added_acc("dw", random(Dtype::f64, {kSize}, rng), tolerance(Dtype::f32, kRows));
      call.compare([=](Context& ctx, const Call::Args& t) {
        ops::rms_norm_bwd(ctx, {.dy = t[dy],
                                .x = t[x],
                                .w = t[w],
                                .rstd = t[r],
                                .dx = t[dx],
                                .accumulate_dx = true,
                                .dw = t[dw]});
      });
    }
  });
}

TEST(CpuStream, EmbeddingAndLayerScalar) {
  Rng rng(303);
  for_each_form([&](Dtype d, bool strided) {
    Call call(d, strided);
    const int ids = call.integers(random_int(Dtype::i64, {kRows}, rng, 0, 11));
    const int table = call.input(random(Dtype::f64, {11, kSize}, rng));
    const int s = call.input(random(Dtype::f64, {1}, rng));
    const int y = call.written_acc("y", {kRows, kSize}, tolerance(Dtype::f32));
    call.compare([=](Context& ctx, const Call::Args& t) {
      ops::embedding(ctx, {.ids = t[ids], .table = t[table], .scale = 6.5, .y = t[y]});
      ops::scale_by(ctx, {.a = t[y], .s = t[s], .out = t[y]});
    });
  });
}

TEST(CpuStream, RouterGradientOfTheResidual) {
  Rng rng(304);
  const int64_t experts = 9, top_k = 3;
  // A token never chooses an expert twice.
  const OwnedTensor chosen = zeros(Dtype::i32, {kRows, top_k});
  for (int64_t i = 0; i < chosen->numel(); ++i) {
    chosen->as<int32_t>()[i] = static_cast<int32_t>((i / top_k + 3 * (i % top_k)) % experts);
  }
  for_each_form([&](Dtype d, bool strided) {
    Call call(d, strided);
    const Shape pairs{kRows, top_k};
    const int u = call.input_acc(random(Dtype::f64, {kRows, kSize}, rng));
    const int scale = call.input(random(Dtype::f64, {kSize}, rng, 0.3, 1.0));
    const int proj = call.input(random(Dtype::f64, {experts, kSize}, rng));
    const int expert_scale = call.input(random(Dtype::f64, {experts}, rng, 0.1, 1.0));
    const int r = call.input_acc(random(Dtype::f64, {kRows}, rng, 0.1, 1.0));
    const int indices = call.integers(cast(chosen.get(), Dtype::i32));
    const int shares = call.input_acc(random(Dtype::f64, pairs, rng, 0.1, 0.3));
    const int rows = call.integers(random_int(Dtype::i32, pairs, rng, 0, 50));
    const int drow = call.input_acc(random(Dtype::f64, {50}, rng));
    const int du = call.added_acc("du", random(Dtype::f64, {kRows, kSize}, rng),
                                  4.0 * tolerance(Dtype::f32, kSize));
    call.compare([=](Context& ctx, const Call::Args& t) {
      ops::router_bwd(ctx, {.u = t[u],
                            .scale = t[scale],
                            .proj = t[proj],
                            .per_expert_scale = t[expert_scale],
                            .rstd = t[r],
                            .indices = t[indices],
                            .shares = t[shares],
                            .pair_row = t[rows],
                            .drow_weight = t[drow],
                            .du = t[du]});
    });
  });
}

}  // namespace
}  // namespace lapidary::test
