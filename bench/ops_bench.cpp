// Throughput of the cpu backend's operations, each as GFLOP/s or GB/s, at hidden size 1024, 1024
// tokens, 32 experts of which 4 serve a token.
#include <benchmark/benchmark.h>

#include <cmath>

#include "lapidary/core/buffer.h"
#include "lapidary/core/rng.h"
#include "lapidary/ops/adamw.h"
#include "lapidary/ops/attention.h"
#include "lapidary/ops/elementwise.h"
#include "lapidary/ops/embedding.h"
#include "lapidary/ops/glu.h"
#include "lapidary/ops/loss.h"
#include "lapidary/ops/matmul.h"
#include "lapidary/ops/moe.h"
#include "lapidary/ops/norm.h"
#include "lapidary/ops/rope.h"

namespace lapidary {
namespace {

constexpr int64_t kTokens = 1024, kHidden = 1024, kInner = 4096, kVocabulary = 32768;
constexpr int64_t kHeads = 16, kGroups = 4, kHead = 256;
constexpr int64_t kExperts = 32, kTopK = 4, kExpertInner = 512;

Context context() { return Context::make(Backend::cpu, {0, int64_t{512} << 20}); }

// A tensor of normal numbers; scale keeps sums of products near 1.
OwnedTensor random(Dtype dtype, const Shape& shape, double scale = 1.0) {
  static uint64_t stream = 0;
  Rng rng(1, ++stream);
  OwnedTensor t(Backend::cpu, dtype, shape);
  for (int64_t i = 0; i < t->numel(); ++i) {
    const auto value = static_cast<float>(scale * (rng.uniform() * 3.4 - 1.7));
    if (dtype == Dtype::bf16) {
      t->as<bf16>()[i] = bf16(value);
    } else {
      t->as<float>()[i] = value;
    }
  }
  return t;
}

OwnedTensor zeros(Dtype dtype, const Shape& shape) { return {Backend::cpu, dtype, shape}; }

Dtype dtype_of(const benchmark::State& state) {
  return state.range(0) == 0 ? Dtype::f32 : Dtype::bf16;
}

void report_flops(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void report_bytes(benchmark::State& state, int64_t bytes) {
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(bytes) * 1e-9,
                                              benchmark::Counter::kIsIterationInvariantRate);
}

// y = x W^T, dx = dy W, dW += dy^T x, by range(1) = 0, 1, 2.
void matmul(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor x = random(d, {kTokens, kHidden}), w = random(d, {kInner, kHidden}, 0.03);
  const OwnedTensor y = random(d, {kTokens, kInner}), dx = zeros(d, {kTokens, kHidden});
  const OwnedTensor dw = zeros(Dtype::f32, {kInner, kHidden});
  Context ctx = context();
  for (auto _ : state) {
    if (state.range(1) == 0) {
      ops::matmul(ctx, {.a = x.get(), .b = w.get(), .out = y.get(), .trans_b = true});
    } else if (state.range(1) == 1) {
      ops::matmul(ctx, {.a = y.get(), .b = w.get(), .out = dx.get()});
    } else {
      ops::matmul(
          ctx, {.a = y.get(), .b = x.get(), .out = dw.get(), .trans_a = true, .accumulate = true});
    }
  }
  report_flops(state, 2.0 * kTokens * kHidden * kInner);
}
BENCHMARK(matmul)->ArgsProduct({{0, 1}, {0, 1, 2}})->UseRealTime();

struct AttentionCase {
  OwnedTensor q, k, v, o, lse, dk, dv;
  ops::MaskSpec mask;
  double pairs = 0.0;  // visible ones, over the rows' heads
  AttentionCase(Dtype d, int64_t queries, int64_t keys, int64_t window)
      : q(random(d, {1, queries, kHeads, kHead}, 0.25)),
        k(random(d, {1, keys, kGroups, kHead}, 0.25)),
        v(random(d, {1, keys, kGroups, kHead})),
        o(zeros(d, {1, queries, kHeads, kHead})),
        lse(zeros(Dtype::f32, {1, kHeads, queries})),
        dk(zeros(Dtype::f32, {1, keys, kGroups, kHead})),
        dv(zeros(Dtype::f32, {1, keys, kGroups, kHead})) {
    mask.sliding = window > 0;
    mask.window = window;
    mask.query_offset = keys - queries;
    for (int64_t s = 0; s < queries; ++s) {
      const auto range = mask.key_range(0, s, keys);
      pairs += static_cast<double>(kHeads * (range.last - range.first));
    }
  }
};

// range: dtype, queries, keys, window (0: full)
void attention(benchmark::State& state) {
  const AttentionCase c(dtype_of(state), state.range(1), state.range(2), state.range(3));
  Context ctx = context();
  for (auto _ : state) {
    ops::attention(ctx, {.q = c.q.get(),
                         .k = c.k.get(),
                         .v = c.v.get(),
                         .mask = c.mask,
                         .scale = 1.0,
                         .o = c.o.get(),
                         .lse = c.lse.get()});
  }
  report_flops(state, 4.0 * kHead * c.pairs);
}
BENCHMARK(attention)
    ->ArgsProduct({{0, 1}, {1024}, {1024}, {0, 256}})
    ->Args({0, 1, 4096, 0})
    ->Args({1, 1, 4096, 0})
    ->UseRealTime();

void attention_bwd(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const AttentionCase c(d, state.range(1), state.range(2), state.range(3));
  const OwnedTensor dout = random(d, c.q->shape()), dq = zeros(d, c.q->shape());
  Context ctx = context();
  ops::attention(ctx, {.q = c.q.get(),
                       .k = c.k.get(),
                       .v = c.v.get(),
                       .mask = c.mask,
                       .scale = 1.0,
                       .o = c.o.get(),
                       .lse = c.lse.get()});
  for (auto _ : state) {
    ops::attention_bwd(ctx, {.dout = dout.get(),
                             .q = c.q.get(),
                             .k = c.k.get(),
                             .v = c.v.get(),
                             .o = c.o.get(),
                             .lse = c.lse.get(),
                             .mask = c.mask,
                             .scale = 1.0,
                             .dq = dq.get(),
                             .dk = c.dk.get(),
                             .dv = c.dv.get()});
  }
  report_flops(state, 10.0 * kHead * c.pairs);
}
BENCHMARK(attention_bwd)->ArgsProduct({{0, 1}, {1024}, {1024}, {0, 256}})->UseRealTime();

void rms_norm(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor x = random(d, {kTokens, kHidden}), w = random(d, {kHidden});
  const OwnedTensor y = zeros(d, {kTokens, kHidden}), r = zeros(Dtype::f32, {kTokens});
  Context ctx = context();
  for (auto _ : state) {
    ops::rms_norm(ctx, {.x = x.get(), .w = w.get(), .residual = {}, .y = y.get(), .rstd = r.get()});
  }
  report_bytes(state, 2 * x->bytes());
}
BENCHMARK(rms_norm)->Arg(0)->Arg(1)->UseRealTime();

void rms_norm_bwd(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor x = random(d, {kTokens, kHidden}), w = random(d, {kHidden});
  const OwnedTensor dy = random(d, {kTokens, kHidden}), dx = zeros(d, {kTokens, kHidden});
  const OwnedTensor r = random(Dtype::f32, {kTokens}), dw = zeros(Dtype::f32, {kHidden});
  Context ctx = context();
  for (auto _ : state) {
    ops::rms_norm_bwd(ctx, {.dy = dy.get(),
                            .x = x.get(),
                            .w = w.get(),
                            .rstd = r.get(),
                            .dx = dx.get(),
                            .dw = dw.get()});
  }
  report_bytes(state, 3 * x->bytes());
}
BENCHMARK(rms_norm_bwd)->Arg(0)->Arg(1)->UseRealTime();

void norm_rope(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor x = random(d, {kTokens, kHeads, kHead}), w = random(d, {kHead});
  const OwnedTensor cos = random(Dtype::f32, {kTokens, kHead / 2});
  const OwnedTensor r = zeros(Dtype::f32, {kTokens * kHeads});
  Context ctx = context();
  for (auto _ : state) {
    ops::norm_rope(ctx, {.x = x.get(),
                         .w = w.get(),
                         .cos = cos.get(),
                         .sin = cos.get(),
                         .y = x.get(),
                         .rstd = r.get()});
  }
  report_bytes(state, 2 * x->bytes());
}
BENCHMARK(norm_rope)->Arg(0)->Arg(1)->UseRealTime();

void geglu(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor gate = random(d, {kTokens, kInner}), up = random(d, {kTokens, kInner});
  const OwnedTensor h = zeros(d, {kTokens, kInner});
  Context ctx = context();
  for (auto _ : state) {
    ops::geglu(ctx, {.gate = gate.get(), .up = up.get(), .row_weight = {}, .h = h.get()});
  }
  report_bytes(state, 3 * h->bytes());
  state.SetItemsProcessed(state.iterations() * h->numel());
}
BENCHMARK(geglu)->Arg(0)->Arg(1)->UseRealTime();

void geglu_bwd(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor gate = random(d, {kTokens, kInner}), up = random(d, {kTokens, kInner});
  const OwnedTensor dh = random(d, {kTokens, kInner});
  const OwnedTensor dgate = zeros(d, {kTokens, kInner}), dup = zeros(d, {kTokens, kInner});
  Context ctx = context();
  for (auto _ : state) {
    ops::geglu_bwd(ctx, {.dh = dh.get(),
                         .gate = gate.get(),
                         .up = up.get(),
                         .row_weight = {},
                         .dgate = dgate.get(),
                         .dup = dup.get()});
  }
  report_bytes(state, 5 * dh->bytes());
}
BENCHMARK(geglu_bwd)->Arg(0)->Arg(1)->UseRealTime();

struct Routing {
  OwnedTensor counts, offsets;
  int64_t rows = 0;
  explicit Routing(int64_t align)
      : counts(zeros(Dtype::i32, {kExperts})), offsets(zeros(Dtype::i32, {kExperts + 1})) {
    Rng rng(2);
    for (int64_t i = 0; i < kTokens * kTopK; ++i) {
      ++counts->as<int32_t>()[rng.below(kExperts)];
    }
    for (int64_t e = 0; e < kExperts; ++e) {
      rows += (counts->as<int32_t>()[e] + align - 1) / align * align;
      offsets->as<int32_t>()[e + 1] = static_cast<int32_t>(rows);
    }
  }
};

// range(1): 0 = forward, 1 = gradient of the weights
void grouped_matmul(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const Routing r(16);
  const OwnedTensor x = random(d, {r.rows, kHidden});
  const OwnedTensor w = random(d, {kExperts, 2 * kExpertInner, kHidden}, 0.03);
  const OwnedTensor y = random(d, {r.rows, 2 * kExpertInner});
  const OwnedTensor dw = zeros(Dtype::f32, w->shape());
  Context ctx = context();
  for (auto _ : state) {
    if (state.range(1) == 0) {
      ops::grouped_matmul(ctx, {.a = x.get(),
                                .b = w.get(),
                                .counts = r.counts.get(),
                                .offsets = r.offsets.get(),
                                .out = y.get(),
                                .trans_b = true});
    } else {
      ops::grouped_matmul_wgrad(ctx, {.dy = y.get(),
                                      .x = x.get(),
                                      .counts = r.counts.get(),
                                      .offsets = r.offsets.get(),
                                      .dw = dw.get()});
    }
  }
  report_flops(state, 2.0 * kTokens * kTopK * kHidden * 2 * kExpertInner);
}
BENCHMARK(grouped_matmul)->ArgsProduct({{0, 1}, {0, 1}})->UseRealTime();

void router(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor u = random(d, {kTokens, kHidden}), scale = random(d, {kHidden});
  const OwnedTensor proj = random(d, {kExperts, kHidden}), expert_scale = random(d, {kExperts});
  const OwnedTensor rstd = zeros(Dtype::f32, {kTokens});
  const OwnedTensor indices = zeros(Dtype::i32, {kTokens, kTopK});
  const OwnedTensor shares = zeros(Dtype::f32, {kTokens, kTopK});
  const OwnedTensor weights = zeros(Dtype::f32, {kTokens, kTopK});
  Context ctx = context();
  for (auto _ : state) {
    ops::router(ctx, {.u = u.get(),
                      .scale = scale.get(),
                      .proj = proj.get(),
                      .per_expert_scale = expert_scale.get(),
                      .rstd = rstd.get(),
                      .indices = indices.get(),
                      .shares = shares.get(),
                      .weights = weights.get()});
  }
  report_bytes(state, u->bytes());
}
BENCHMARK(router)->Arg(0)->Arg(1)->UseRealTime();

// range(1): 0 = loss, 1 = loss and gradients
void linear_cross_entropy(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const bool train = state.range(1) != 0;
  const OwnedTensor x = random(d, {kTokens, kHidden});
  const OwnedTensor w = random(d, {kVocabulary, kHidden}, 0.03);
  const OwnedTensor dx = zeros(d, {kTokens, kHidden});
  const OwnedTensor dw = zeros(Dtype::f32, {kVocabulary, kHidden});
  const OwnedTensor loss = zeros(Dtype::f64, {1}), targets = zeros(Dtype::i64, {kTokens});
  Context ctx = context();
  for (auto _ : state) {
    ops::linear_cross_entropy(ctx, {.x = x.get(),
                                    .w = w.get(),
                                    .targets = targets.get(),
                                    .softcap = 30.0,
                                    .grad_scale = 1e-3,
                                    .loss = loss.get(),
                                    .dx = train ? dx.get() : Tensor(),
                                    .dw = train ? dw.get() : Tensor()});
  }
  report_flops(state, (train ? 6.0 : 2.0) * kTokens * kHidden * kVocabulary);
}
BENCHMARK(linear_cross_entropy)->ArgsProduct({{0, 1}, {0, 1}})->UseRealTime();

void embedding_bwd(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const OwnedTensor ids = zeros(Dtype::i64, {kTokens}), dy = random(d, {kTokens, kHidden});
  Rng rng(3);
  for (int64_t t = 0; t < kTokens; ++t) ids->as<int64_t>()[t] = rng.below(kVocabulary);
  const OwnedTensor dtable = zeros(Dtype::f32, {kVocabulary, kHidden});
  Context ctx = context();
  for (auto _ : state) {
    ops::embedding_bwd(ctx,
                       {.ids = ids.get(), .dy = dy.get(), .scale = 32.0, .dtable = dtable.get()});
  }
  report_bytes(state, dy->bytes() + 8 * dy->numel());
}
BENCHMARK(embedding_bwd)->Arg(0)->Arg(1)->UseRealTime();

void adamw(benchmark::State& state) {
  const Dtype d = dtype_of(state);
  const Shape shape = {kInner, kHidden};
  const OwnedTensor param = random(d, shape), master = random(Dtype::f32, shape);
  const OwnedTensor grad = random(Dtype::f32, shape), m = zeros(Dtype::f32, shape);
  const OwnedTensor v = zeros(Dtype::f32, shape);
  Context ctx = context();
  for (auto _ : state) {
    ops::adamw(ctx, {.param = param.get(),
                     .master = d == Dtype::f32 ? Tensor() : master.get(),
                     .grad = grad.get(),
                     .m = m.get(),
                     .v = v.get(),
                     .lr = 1e-4});
  }
  report_bytes(state, shape.numel() * (d == Dtype::f32 ? 28 : 30));
}
BENCHMARK(adamw)->Arg(0)->Arg(1)->UseRealTime();

void sum_of_squares(benchmark::State& state) {
  const OwnedTensor t = random(dtype_of(state), {kInner, kHidden});
  Context ctx = context();
  const OwnedTensor sum(Backend::cpu, Dtype::f64, {1});
  for (auto _ : state) ops::sum_of_squares(ctx, {.t = t.get(), .sum = sum.get()});
  report_bytes(state, t->bytes());
}
BENCHMARK(sum_of_squares)->Arg(0)->Arg(1)->UseRealTime();

}  // namespace
}  // namespace lapidary

BENCHMARK_MAIN();
