#pragma once

#include <cstdint>

namespace lapidary {

// Counter-based random numbers (core/philox.h): the value depends on seed, stream and counter
// alone, never on order or on the number of threads or ranks.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0, uint64_t counter = 0)
      : seed_(seed), stream_(stream), counter_(counter) {}

  uint64_t bits();           // 64 uniform bits
  double uniform();          // [0, 1)
  double normal();           // mean 0, variance 1 (Box-Muller)
  int64_t below(int64_t n);  // 0 .. n-1, unbiased
  uint64_t counter() const { return counter_; }

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t counter_;
};

// Stream number of a name (64-bit FNV-1a), so that a tensor's initial values depend on its name
// only.
uint64_t stream_of(const char* name);

}  // namespace lapidary
