#include "lapidary/data/shuffle.h"

#include <cstddef>
#include <numeric>
#include <utility>

#include "lapidary/core/rng.h"

namespace lapidary {

std::vector<int64_t> shuffled_order(int64_t count, bool shuffle, uint64_t seed, const char* purpose,
                                    int64_t round) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (!shuffle) return order;
  Rng rng(seed, stream_of(purpose) + static_cast<uint64_t>(round));
  for (int64_t i = count - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng.below(i + 1))]);
  }
  return order;
}

}  // namespace lapidary
