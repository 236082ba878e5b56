#include <algorithm>
#include <cstring>
#include <string>

#include "lapidary/ops/cpu/by_dtype.h"
#include "lapidary/ops/cpu/cpu.h"
#include "lapidary/ops/cpu/kernels.h"
#include "lapidary/ops/cpu/parallel.h"
#include "lapidary/ops/cpu/scratch.h"

namespace lapidary::ops::cpu {
namespace {

int64_t round_up(int64_t n, int64_t align) { return (n + align - 1) / align * align; }

// counts [E] and offsets [E + 1] of the pairs in use.
void count_pairs(const MoeSortArgs& a, const uint8_t* valid) {
  const int64_t experts = a.counts.dim(0), k = a.indices.dim(1);
  int32_t* counts = a.counts.as<int32_t>();
  int32_t* offsets = a.offsets.as<int32_t>();
  std::fill(counts, counts + experts, 0);
  for (int64_t t = 0; t < a.indices.dim(0); ++t) {
    const int32_t* chosen = a.indices.as<int32_t>() + t * a.indices.stride(0);
    for (int64_t j = 0; j < k; ++j) {
      if (chosen[j] == -1) continue;
      if (chosen[j] < 0 || chosen[j] >= experts) {
        fail("moe_sort", "expert " + std::to_string(chosen[j]) + " of token " + std::to_string(t) +
                             " is not one of " + std::to_string(experts));
      }
      if (valid == nullptr || valid[t] != 0) ++counts[chosen[j]];
    }
  }
  offsets[0] = 0;
  for (int64_t e = 0; e < experts; ++e) {
    offsets[e + 1] = offsets[e] + static_cast<int32_t>(round_up(counts[e], a.align));
  }
  if (offsets[experts] > a.row_token.dim(0)) {
    fail("moe_sort", std::to_string(offsets[experts]) + " rows do not fit in " +
                         std::to_string(a.row_token.dim(0)));
  }
}

}  // namespace

int64_t moe_sort_scratch_bytes(const MoeSortArgs& a) {
  Carver carver;
  carver.take<int32_t>(a.counts.dim(0));
  return carver.bytes();
}

void moe_sort(Context& ctx, const MoeSortArgs& a) {
  const ArenaScope scope(ctx.scratch);
  Carver carver(scratch_block(ctx, moe_sort_scratch_bytes(a)));
  const int64_t experts = a.counts.dim(0), k = a.indices.dim(1);
  auto* next = carver.take<int32_t>(experts);
  const uint8_t* valid = data_or_null<uint8_t>(a.token_valid);
  count_pairs(a, valid);
  std::copy_n(a.offsets.as<int32_t>(), experts, next);
  int32_t* row_token = a.row_token.as<int32_t>();
  float* row_weight = a.row_weight.as<float>();
  std::fill_n(row_token, a.row_token.dim(0), -1);
  std::fill_n(row_weight, a.row_weight.dim(0), 0.0F);
  for (int64_t t = 0; t < a.indices.dim(0); ++t) {
    const int32_t* chosen = a.indices.as<int32_t>() + t * a.indices.stride(0);
    const float* weights = a.weights.as<float>() + t * a.weights.stride(0);
    int32_t* rows = a.pair_row.as<int32_t>() + t * a.pair_row.stride(0);
    for (int64_t j = 0; j < k; ++j) {
      if (chosen[j] < 0 || (valid != nullptr && valid[t] == 0)) {
        rows[j] = -1;
        continue;
      }
      const int32_t row = next[chosen[j]]++;
      rows[j] = row;
      row_token[row] = static_cast<int32_t>(t);
      row_weight[row] = weights[j];
    }
  }
  if (!a.loads.defined()) return;
  for (int64_t e = 0; e < experts; ++e) {
    a.loads.as<int64_t>()[e] += a.counts.as<int32_t>()[e];
  }
}

void moe_gather(Context&, const MoeGatherArgs& a) {
  const int32_t* token = a.row_token.as<int32_t>();
  const int64_t rows =
      std::min<int64_t>(a.offsets.as<int32_t>()[a.offsets.dim(0) - 1], a.out.dim(0));
  const int64_t element = size_of(a.x.dtype());
  const auto bytes = static_cast<size_t>(a.x.dim(1) * element);
  const char* x = static_cast<const char*>(a.x.data());
  char* out = static_cast<char*>(a.out.data());
  parallel_for(rows, [&](int64_t r) {
    char* to = out + r * a.out.stride(0) * element;
    if (token[r] < 0) {
      std::memset(to, 0, bytes);
    } else {
      std::memcpy(to, x + token[r] * a.x.stride(0) * element, bytes);
    }
  });
}

void moe_combine(Context&, const MoeCombineArgs& a) {
  constexpr int64_t kBlock = 512;  // columns whose float sums stay on the stack
  const int64_t k = a.pair_row.dim(1), n = a.out.dim(1);
  by_dtype("moe_combine", a.y.dtype(), [&]<class T>(T) {
    const T* y = a.y.as<T>();
    T* out = a.out.as<T>();
    parallel_for(a.out.dim(0), [&](int64_t t) {
      const int32_t* rows = a.pair_row.as<int32_t>() + t * a.pair_row.stride(0);
      for (int64_t first = 0; first < n; first += kBlock) {
        const int64_t count = std::min(kBlock, n - first);
        T* to = out + t * a.out.stride(0) + first;
        float sum[kBlock];
        std::fill_n(sum, count, 0.0F);
        for (int64_t j = 0; j < k; ++j) {
          if (rows[j] < 0) continue;
          axpby_row(sum, y + rows[j] * a.y.stride(0) + first, sum, count, 1.0F, 1.0F);
        }
        axpby_row(sum, a.accumulate ? to : nullptr, to, count, 1.0F, 1.0F);
      }
    });
  });
}

}  // namespace lapidary::ops::cpu
