#include <algorithm>
#include <cmath>
#include <string>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/column_sums.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/gemm.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/scratch.h"
#include "lapidary/ops/cpu/widen.h"

namespace lapidary::ops::cpu {
namespace {

constexpr int64_t kChunk = 256;  // tokens whose rows in float exist at a time

int64_t chunk_of(int64_t tokens) { return std::min(kChunk, tokens); }

struct Forward {
  float* proj;     // [E, H]
  float* scale;    // [H]
  float* z;        // [chunk, H]: n scale, without the factor H^-1/2
  float* logits;   // [chunk, E]
  uint8_t* taken;  // [chunk, E]
  int64_t bytes;
  Forward(void* base, const RouterArgs& a) {
    Carver carver(base);
    const int64_t experts = a.proj.dim(0), hidden = a.u.dim(1), chunk = chunk_of(a.u.dim(0));
    proj = carver.take<float>(experts * hidden);
    scale = carver.take<float>(hidden);
    z = carver.take<float>(chunk * hidden);
    logits = carver.take<float>(chunk * experts);
    taken = carver.take<uint8_t>(chunk * experts);
    bytes = carver.bytes();
  }
};

struct Backward {
  float* proj;     // [E, H]
  float* scale;    // [H]
  float* z;        // [chunk, H]
  float* dz;       // [chunk, H]
  float* dlogits;  // [chunk, E], times H^-1/2
  float* partial;  // sums for dscale
  int64_t bytes;
  Backward(void* base, const RouterBwdArgs& a) {
    Carver carver(base);
    const int64_t experts = a.proj.dim(0), hidden = a.u.dim(1), chunk = chunk_of(a.u.dim(0));
    proj = carver.take<float>(experts * hidden);
    scale = carver.take<float>(hidden);
    z = carver.take<float>(chunk * hidden);
    dz = carver.take<float>(chunk * hidden);
    dlogits = carver.take<float>(chunk * experts);
    const int64_t sums = a.dscale.defined() ? column_sums_bytes(chunk, hidden) : 0;
    partial = carver.take<float>(sums / static_cast<int64_t>(sizeof(float)));
    bytes = carver.bytes();
  }
};

template <class T>
void widen(const ConstTensor& proj, float* to) {
  const int64_t hidden = proj.dim(1);
  parallel_for(proj.dim(0), [&](int64_t e) {
    axpby_row(proj.as<T>() + e * proj.stride(0), static_cast<const T*>(nullptr), to + e * hidden,
              hidden, 1.0F, 0.0F);
  });
}

void check_indices(const char* op, const ConstTensor& indices, int64_t experts) {
  for (int64_t t = 0; t < indices.dim(0); ++t) {
    const int32_t* row = indices.as<int32_t>() + t * indices.stride(0);
    for (int64_t j = 0; j < indices.dim(1); ++j) {
      if (row[j] >= 0 && row[j] < experts) continue;
      fail(op, "expert " + std::to_string(row[j]) + " of token " + std::to_string(t) +
                   " is not one of " + std::to_string(experts));
    }
  }
}

// The k largest logits, the lowest id first among equals; a NaN is never chosen before a number
// that precedes it, and every id is valid whatever the logits are.
void select_top(const float* logits, int64_t experts, int64_t k, uint8_t* taken, int32_t* chosen) {
  std::fill_n(taken, experts, uint8_t{0});
  for (int64_t j = 0; j < k; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      if (taken[e] == 0 && (best < 0 || logits[e] > logits[best])) best = e;
    }
    taken[best] = 1;
    chosen[j] = static_cast<int32_t>(best);
  }
}

// Shares are the softmax over the selected logits: the rest cancels.
template <class T>
void weigh(const RouterArgs& a, int64_t t, const float* logits) {
  const int64_t k = a.indices.dim(1);
  const int32_t* chosen = a.indices.as<int32_t>() + t * a.indices.stride(0);
  float* shares = a.shares.as<float>() + t * a.shares.stride(0);
  float* weights = a.weights.as<float>() + t * a.weights.stride(0);
  float top = logits[chosen[0]];
  for (int64_t j = 1; j < k; ++j) top = std::max(top, logits[chosen[j]]);
  float sum = 0.0F;
  for (int64_t j = 0; j < k; ++j) {
    shares[j] = std::exp(logits[chosen[j]] - top);
    sum += shares[j];
  }
  for (int64_t j = 0; j < k; ++j) {
    shares[j] /= sum;
    weights[j] = shares[j] * static_cast<float>(a.per_expert_scale.as<T>()[chosen[j]]);
  }
}

// U: type of the residual; T: of the parameters.
template <class U, class T>
void forward(const RouterArgs& a, const Forward& s) {
  const int64_t experts = a.proj.dim(0), hidden = a.u.dim(1), tokens = a.u.dim(0);
  const auto factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden)));
  float* rstd = data_or_null<float>(a.rstd);
  widen<T>(a.proj, s.proj);
  const float* scale = widen_vector("router", a.scale, s.scale);
  for (int64_t first = 0; first < tokens; first += kChunk) {
    const int64_t count = std::min(kChunk, tokens - first);
    parallel_for(count, [&](int64_t i) {
      const U* u = a.u.as<U>() + (first + i) * a.u.stride(0);
      const float r = rms_reciprocal(sum_squares(u, hidden), hidden, a.eps);
      if (rstd != nullptr) rstd[first + i] = r;
      norm_row(u, scale, static_cast<const float*>(nullptr), s.z + i * hidden, hidden, r);
    });
    gemm({.m = count,
          .n = experts,
          .k = hidden,
          .a = s.z,
          .b = s.proj,
          .c = s.logits,
          .lda = hidden,
          .ldb = hidden,
          .ldc = experts,
          .trans_b = true});
    parallel_for(count, [&](int64_t i) {
      const int64_t t = first + i;
      float* logits = s.logits + i * experts;
      for (int64_t e = 0; e < experts; ++e) logits[e] *= factor;
      if (a.select) {
        select_top(logits, experts, a.indices.dim(1), s.taken + i * experts,
                   a.indices.as<int32_t>() + t * a.indices.stride(0));
      }
      weigh<T>(a, t, logits);
    });
  }
}

// The gradient of token t's logits, times `factor`, and of the scales of its experts.
template <class T>
void logit_gradient(const RouterBwdArgs& a, int64_t t, float factor, float* dlogits) {
  const int64_t k = a.indices.dim(1);
  const int32_t* chosen = a.indices.as<int32_t>() + t * a.indices.stride(0);
  const int32_t* rows = a.pair_row.as<int32_t>() + t * a.pair_row.stride(0);
  const float* shares = a.shares.as<float>() + t * a.shares.stride(0);
  const float* drow = a.drow_weight.as<float>();
  const auto dshare = [&](int64_t j) {
    const float dw = rows[j] < 0 ? 0.0F : drow[rows[j]];
    return dw * static_cast<float>(a.per_expert_scale.as<T>()[chosen[j]]);
  };
  float mean = 0.0F;
  for (int64_t j = 0; j < k; ++j) mean += dshare(j) * shares[j];
  std::fill_n(dlogits, a.proj.dim(0), 0.0F);
  for (int64_t j = 0; j < k; ++j) dlogits[chosen[j]] = factor * shares[j] * (dshare(j) - mean);
}

void scale_gradient(const RouterBwdArgs& a) {
  float* dscale = a.dper_expert_scale.as<float>();
  for (int64_t t = 0; t < a.u.dim(0); ++t) {
    const int32_t* chosen = a.indices.as<int32_t>() + t * a.indices.stride(0);
    const int32_t* rows = a.pair_row.as<int32_t>() + t * a.pair_row.stride(0);
    const float* shares = a.shares.as<float>() + t * a.shares.stride(0);
    for (int64_t j = 0; j < a.indices.dim(1); ++j) {
      if (rows[j] >= 0) dscale[chosen[j]] += a.drow_weight.as<float>()[rows[j]] * shares[j];
    }
  }
}

template <class U, class T>
void backward_chunk(const RouterBwdArgs& a, const Backward& s, const float* scale, int64_t first,
                    int64_t count) {
  const int64_t experts = a.proj.dim(0), hidden = a.u.dim(1);
  const auto factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden)));
  const float* rstd = a.rstd.as<float>() + first;
  const auto u = [&](int64_t i) { return a.u.as<U>() + (first + i) * a.u.stride(0); };
  parallel_for(count, [&](int64_t i) {
    logit_gradient<T>(a, first + i, factor, s.dlogits + i * experts);
    if (!a.dproj.defined()) return;
    norm_row(u(i), scale, static_cast<const float*>(nullptr), s.z + i * hidden, hidden, rstd[i]);
  });
  if (a.dproj.defined()) {
    gemm({.m = experts,
          .n = hidden,
          .k = count,
          .a = s.dlogits,
          .b = s.z,
          .c = a.dproj.data(),
          .lda = experts,
          .ldb = hidden,
          .ldc = a.dproj.stride(0),
          .trans_a = true,
          .accumulate = true});
  }
  gemm({.m = count,
        .n = hidden,
        .k = experts,
        .a = s.dlogits,
        .b = s.proj,
        .c = s.dz,
        .lda = experts,
        .ldb = hidden,
        .ldc = hidden});
  float* dscale = data_or_null<float>(a.dscale);
  column_sums(count, hidden, s.partial, dscale, [&](int64_t i, float* sums) {
    const float* dz = s.dz + i * hidden;
    const float sum = norm_bwd_sums(dz, u(i), scale, sums, hidden, rstd[i]);
    const float mean = rstd[i] * sum / static_cast<float>(hidden);
    norm_bwd_row(dz, u(i), scale, a.du.as<U>() + (first + i) * a.du.stride(0), hidden, rstd[i],
                 mean, true);
  });
}

}  // namespace

int64_t router_scratch_bytes(const RouterArgs& a) { return Forward(nullptr, a).bytes; }
int64_t router_bwd_scratch_bytes(const RouterBwdArgs& a) { return Backward(nullptr, a).bytes; }

void router(Context& ctx, const RouterArgs& a) {
  if (!a.select) check_indices("router", a.indices, a.proj.dim(0));
  const ArenaScope scope(ctx.scratch);
  const Forward scratch(scratch_block(ctx, router_scratch_bytes(a)), a);
  by_dtype("router", a.u.dtype(), [&]<class U>(U) {
    by_dtype("router", a.proj.dtype(), [&]<class T>(T) { forward<U, T>(a, scratch); });
  });
}

void router_bwd(Context& ctx, const RouterBwdArgs& a) {
  check_indices("router_bwd", a.indices, a.proj.dim(0));
  const ArenaScope scope(ctx.scratch);
  const Backward scratch(scratch_block(ctx, router_bwd_scratch_bytes(a)), a);
  if (a.dper_expert_scale.defined()) scale_gradient(a);
  const float* scale = widen_vector("router_bwd", a.scale, scratch.scale);
  by_dtype("router_bwd", a.u.dtype(), [&]<class U>(U) {
    by_dtype("router_bwd", a.proj.dtype(), [&]<class T>(T) {
      widen<T>(a.proj, scratch.proj);
      for (int64_t first = 0; first < a.u.dim(0); first += kChunk) {
        backward_chunk<U, T>(a, scratch, scale, first, std::min(kChunk, a.u.dim(0) - first));
      }
    });
  });
}

}  // namespace lapidary::ops::cpu
