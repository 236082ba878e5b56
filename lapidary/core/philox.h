#pragma once

#include <cstdint>

namespace lapidary {

struct PhiloxBlock {
  uint32_t v[4];
};

// Philox4x32-10 (Salmon et al. 2011): 128 random bits for each counter of each stream of each key.
constexpr PhiloxBlock philox(uint64_t key, uint64_t stream, uint64_t counter) {
  PhiloxBlock x{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
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

}  // namespace lapidary
