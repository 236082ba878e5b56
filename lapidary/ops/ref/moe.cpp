#include "lapidary/ops/moe.h"

#include <algorithm>
#include <string>
#include <vector>

#include "lapidary/core/error.h"
#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

// Counts the pairs of each expert and lays out the segments.
void lay_out(const MoeSortArgs& args) {
  int32_t* counts = args.counts.as<int32_t>();
  int32_t* offsets = args.offsets.as<int32_t>();
  const uint8_t* valid = elements<uint8_t>(args.token_valid);
  const int64_t experts = args.counts.dim(0);
  std::fill(counts, counts + experts, 0);
  for (int64_t t = 0; t < args.indices.dim(0); ++t) {
    if (valid != nullptr && valid[t] == 0) continue;
    for (int64_t k = 0; k < args.indices.dim(1); ++k) {
      const int32_t expert = row<int32_t>(args.indices, t)[k];
      if (expert >= 0) ++counts[expert];
    }
  }
  int64_t start = 0;
  for (int64_t e = 0; e < experts; ++e) {
    offsets[e] = static_cast<int32_t>(start);
    start += (counts[e] + args.align - 1) / args.align * args.align;
    if (args.loads.defined()) args.loads.as<int64_t>()[e] += counts[e];
  }
  offsets[experts] = static_cast<int32_t>(start);
  if (start > args.row_token.dim(0)) {
    fail("moe_sort",
         std::to_string(start) + " rows do not fit in " + std::to_string(args.row_token.dim(0)));
  }
}

template <class T>
void run(const MoeSortArgs& args) {
  lay_out(args);
  int32_t* row_token = args.row_token.as<int32_t>();
  T* row_weight = args.row_weight.as<T>();
  const uint8_t* valid = elements<uint8_t>(args.token_valid);
  std::fill(row_token, row_token + args.row_token.dim(0), -1);
  std::fill(row_weight, row_weight + args.row_weight.dim(0), T{});
  std::vector<int32_t> next(static_cast<size_t>(args.counts.dim(0)));
  std::copy_n(args.offsets.as<int32_t>(), next.size(), next.begin());
  for (int64_t t = 0; t < args.indices.dim(0); ++t) {
    for (int64_t k = 0; k < args.indices.dim(1); ++k) {
      int32_t& r = row<int32_t>(args.pair_row, t)[k];
      r = -1;
      const int32_t expert = row<int32_t>(args.indices, t)[k];
      if (expert < 0 || (valid != nullptr && valid[t] == 0)) continue;
      r = next[static_cast<size_t>(expert)]++;
      row_token[r] = static_cast<int32_t>(t);
      row_weight[r] = row<T>(args.weights, t)[k];
    }
  }
}

template <class T>
void run(const MoeGatherArgs& args) {
  const int32_t* row_token = args.row_token.as<int32_t>();
  const int64_t used = args.offsets.as<int32_t>()[args.offsets.dim(0) - 1];
  for (int64_t r = 0; r < used; ++r) {
    T* out = row<T>(args.out, r);
    if (row_token[r] < 0) {
      std::fill_n(out, args.out.dim(1), T{});
    } else {
      std::copy_n(row<T>(args.x, row_token[r]), args.out.dim(1), out);
    }
  }
}

template <class T>
void run(const MoeCombineArgs& args) {
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    T* out = row<T>(args.out, t);
    if (!args.accumulate) std::fill_n(out, args.out.dim(1), T{});
    for (int64_t k = 0; k < args.pair_row.dim(1); ++k) {
      const int32_t r = row<int32_t>(args.pair_row, t)[k];
      if (r < 0) continue;
      const T* y = row<T>(args.y, r);
      for (int64_t j = 0; j < args.out.dim(1); ++j) out[j] += y[j];
    }
  }
}

}  // namespace

void moe_sort(Context&, const MoeSortArgs& a) {
  with_scalar("moe_sort", a.weights.dtype(), [&]<class T>(T) { run<T>(a); });
}

void moe_gather(Context&, const MoeGatherArgs& a) {
  with_scalar("moe_gather", a.x.dtype(), [&]<class T>(T) { run<T>(a); });
}

void moe_combine(Context&, const MoeCombineArgs& a) {
  with_scalar("moe_combine", a.y.dtype(), [&]<class T>(T) { run<T>(a); });
}

void grouped_matmul(Context& ctx, const GroupedMatmulArgs& a) {
  const int32_t* offsets = a.offsets.as<int32_t>();
  for (int64_t e = 0; e < a.b.dim(0); ++e) {
    const int64_t start = offsets[e], rows = offsets[e + 1] - start;
    if (rows == 0) continue;
    matmul(ctx, {.a = a.a.slice(0, start, rows),
                 .b = a.b.slice(0, e, 1).rows(),
                 .out = a.out.slice(0, start, rows),
                 .trans_b = a.trans_b});
  }
}

void grouped_matmul_wgrad(Context& ctx, const GroupedMatmulWgradArgs& a) {
  const int32_t* counts = a.counts.as<int32_t>();
  const int32_t* offsets = a.offsets.as<int32_t>();
  for (int64_t e = 0; e < a.dw.dim(0); ++e) {
    if (counts[e] == 0) continue;
    matmul(ctx, {.a = a.dy.slice(0, offsets[e], counts[e]),
                 .b = a.x.slice(0, offsets[e], counts[e]),
                 .out = a.dw.slice(0, e, 1).rows(),
                 .trans_a = true,
                 .accumulate = true});
  }
}

}  // namespace lapidary::ops::ref
