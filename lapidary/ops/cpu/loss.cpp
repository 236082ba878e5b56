#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/gemm.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/scratch.h"

namespace lapidary::ops::cpu {
namespace {

constexpr int64_t kIgnored = -100;
constexpr int64_t kLogits = int64_t{32} << 20;  // elements of a chunk's logits: 128 MiB
constexpr int64_t kMaxChunk = 512;              // tokens

// Tokens of a chunk. Their gradient overwrites the logits, in the dtype of x, so that nothing else
// of size [chunk, V] exists.
int64_t chunk_of(const LinearCrossEntropyArgs& a) {
  const int64_t fits =
      std::clamp<int64_t>(kLogits / std::max<int64_t>(a.w.dim(0), 1), 1, kMaxChunk);
  return std::min(fits, a.x.dim(0));
}

struct Scratch {
  int64_t chunk;
  int64_t* token;  // [T]: the counted ones
  float* logits;   // [chunk, V]
  char* rows;      // [chunk, H] in the dtype of x: inputs
  char* drows;     // [chunk, H]: their gradient
  double* losses;  // [chunk]
  int64_t bytes;
  Scratch(void* base, const LinearCrossEntropyArgs& a) : chunk(chunk_of(a)) {
    Carver carver(base);
    const int64_t row_bytes = a.x.dim(1) * size_of(a.x.dtype());
    token = carver.take<int64_t>(a.x.dim(0));
    logits = carver.take<float>(chunk * a.w.dim(0));
    rows = carver.take<char>(chunk * row_bytes);
    drows = carver.take<char>(a.dx.defined() ? chunk * row_bytes : 0);
    losses = carver.take<double>(chunk);
    bytes = carver.bytes();
  }
};

// Lists the tokens with a target; the others get a zero gradient.
int64_t list_counted(const LinearCrossEntropyArgs& a, int64_t* token) {
  const int64_t* target = a.targets.as<int64_t>();
  const int64_t element = size_of(a.x.dtype());
  int64_t counted = 0;
  for (int64_t t = 0; t < a.x.dim(0); ++t) {
    if (target[t] != kIgnored) {
      if (target[t] < 0 || target[t] >= a.w.dim(0)) {
        fail("linear_cross_entropy",
             "target " + std::to_string(target[t]) + " of token " + std::to_string(t) +
                 " is outside the vocabulary of " + std::to_string(a.w.dim(0)),
             "use -100 for tokens that do not count");
      }
      token[counted++] = t;
    } else if (a.dx.defined()) {
      std::memset(static_cast<char*>(a.dx.data()) + t * a.dx.stride(0) * element, 0,
                  static_cast<size_t>(a.x.dim(1) * element));
    }
  }
  return counted;
}

// The loss of one token; with gradient, its logits become dl in the dtype of x.
template <class T>
double token_loss(const LinearCrossEntropyArgs& a, float* logits, int64_t target) {
  const int64_t vocabulary = a.w.dim(0);
  const auto cap = static_cast<float>(a.softcap);
  // The vector loops may lose a NaN: the target's raw logit tells that the row is broken.
  const bool broken = !std::isfinite(logits[target]);
  if (cap != 0.0F) softcap_row(logits, vocabulary, cap);
  const float top = max_row(logits, vocabulary, 1.0F, nullptr);
  const double lse = static_cast<double>(top) + std::log(exp_sum(logits, vocabulary, top));
  const double z = static_cast<double>(logits[target]);
  const double loss = broken ? std::numeric_limits<double>::quiet_NaN() : lse - z;
  if (!a.dx.defined()) return loss;
  const double ratio = cap == 0.0F ? 0.0 : z / a.softcap;
  const double slope = a.grad_scale * (1.0 - ratio * ratio);
  cross_entropy_bwd_row<T>(logits, vocabulary, static_cast<float>(lse),
                           static_cast<float>(a.grad_scale), cap == 0.0F ? 0.0F : 1.0F / cap);
  // exp(-loss) - 1 without cancellation where the target is nearly certain.
  reinterpret_cast<T*>(logits)[target] = T(static_cast<float>(slope * std::expm1(-loss)));
  return loss;
}

template <class T>
void gradient(const LinearCrossEntropyArgs& a, const Scratch& s, const int64_t* token,
              int64_t count) {
  const int64_t hidden = a.x.dim(1), vocabulary = a.w.dim(0);
  // A row of dl starts where its row of logits did.
  const int64_t ld = vocabulary * static_cast<int64_t>(sizeof(float) / sizeof(T));
  T* drows = reinterpret_cast<T*>(s.drows);
  gemm({.m = count,
        .n = hidden,
        .k = vocabulary,
        .a = s.logits,
        .b = a.w.data(),
        .c = drows,
        .lda = ld,
        .ldb = a.w.stride(0),
        .ldc = hidden,
        .in = dtype_of<T>(),
        .out = dtype_of<T>()});
  parallel_for(count, [&](int64_t i) {
    std::memcpy(a.dx.as<T>() + token[i] * a.dx.stride(0), drows + i * hidden,
                static_cast<size_t>(hidden) * sizeof(T));
  });
  if (!a.dw.defined()) return;
  gemm({.m = vocabulary,
        .n = hidden,
        .k = count,
        .a = s.logits,
        .b = s.rows,
        .c = a.dw.data(),
        .lda = ld,
        .ldb = hidden,
        .ldc = a.dw.stride(0),
        .in = dtype_of<T>(),
        .out = Dtype::f32,
        .trans_a = true,
        .accumulate = true});
}

template <class T>
double chunk_loss(const LinearCrossEntropyArgs& a, const Scratch& s, const int64_t* token,
                  int64_t count) {
  const int64_t hidden = a.x.dim(1), vocabulary = a.w.dim(0);
  T* rows = reinterpret_cast<T*>(s.rows);
  parallel_for(count, [&](int64_t i) {
    std::memcpy(rows + i * hidden, a.x.as<T>() + token[i] * a.x.stride(0),
                static_cast<size_t>(hidden) * sizeof(T));
  });
  gemm({.m = count,
        .n = vocabulary,
        .k = hidden,
        .a = rows,
        .b = a.w.data(),
        .c = s.logits,
        .lda = hidden,
        .ldb = a.w.stride(0),
        .ldc = vocabulary,
        .in = dtype_of<T>(),
        .out = Dtype::f32,
        .trans_b = true});
  const int64_t* target = a.targets.as<int64_t>();
  parallel_for(count, [&](int64_t i) {
    s.losses[i] = token_loss<T>(a, s.logits + i * vocabulary, target[token[i]]);
  });
  if (a.dx.defined()) gradient<T>(a, s, token, count);
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += s.losses[i];
  return sum;
}

}  // namespace

int64_t linear_cross_entropy_scratch_bytes(const LinearCrossEntropyArgs& a) {
  return Scratch(nullptr, a).bytes;
}

void linear_cross_entropy(Context& ctx, const LinearCrossEntropyArgs& a) {
  const ArenaScope scope(ctx.scratch);
  const Scratch s(scratch_block(ctx, linear_cross_entropy_scratch_bytes(a)), a);
  const int64_t counted = list_counted(a, s.token);
  double loss = 0.0;
  by_dtype("linear_cross_entropy", a.x.dtype(), [&]<class T>(T) {
    for (int64_t first = 0; first < counted; first += s.chunk) {
      loss += chunk_loss<T>(a, s, s.token + first, std::min(s.chunk, counted - first));
    }
  });
  a.loss.as<double>()[0] += loss;
}

}  // namespace lapidary::ops::cpu
