#include "lapidary/core/rng.h"

#include <cmath>
#include <numbers>

namespace lapidary {
namespace {

struct Block {
  uint32_t v[4];
};

Block philox(uint64_t key, uint64_t stream, uint64_t counter) {
  Block x{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
           static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)}};
  auto k0 = static_cast<uint32_t>(key);
  auto k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53U} * x.v[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57U} * x.v[2];
    x = {{static_cast<uint32_t>(p1 >> 32) ^ x.v[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ x.v[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return x;
}

}  // namespace

uint64_t Rng::bits() {
  const Block b = philox(seed_, stream_, counter_++);
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
