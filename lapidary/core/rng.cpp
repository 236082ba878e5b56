#include "lapidary/core/rng.h"

#include <cmath>
#include <numbers>

#include "lapidary/core/philox.h"

namespace lapidary {
uint64_t Rng::bits() {
  const PhiloxBlock b = philox(seed_, stream_, counter_++);
  return (uint64_t{b.v[0]} << 32) | b.v[1];
}

double Rng::uniform() { return static_cast<double>(bits() >> 11) * 0x1.0p-53; }

double Rng::normal() {
  const double u = 1.0 - uniform();  // (0, 1]: the logarithm stays finite
  const double angle = 2.0 * std::numbers::pi * uniform();
  return std::sqrt(-2.0 * std::log(u)) * std::cos(angle);
}

int64_t Rng::below(int64_t n) {
  const auto range = static_cast<uint64_t>(n);
  const uint64_t limit = UINT64_MAX - UINT64_MAX % range;
  uint64_t value = bits();
  while (value >= limit) value = bits();
  return static_cast<int64_t>(value % range);
}

uint64_t stream_of(const char* name) {
  uint64_t hash = 0xcbf29ce484222325U;
  for (; *name != '\0'; ++name) {
    hash = (hash ^ static_cast<unsigned char>(*name)) * 0x100000001b3U;
  }
  return hash;
}

}  // namespace lapidary
