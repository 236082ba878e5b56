#pragma once

#include <cstdint>

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as plain
// functions of seed, stream and counter: the host's and a GPU's numbers come from these lines.
namespace lapidary {

struct PhiloxBlock {
  uint32_t v[4];
};

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

// 64 uniform bits.
constexpr uint64_t philox_bits(uint64_t seed, uint64_t stream, uint64_t counter) {
  const PhiloxBlock b = philox(seed, stream, counter);
  return (uint64_t{b.v[0]} << 32) | b.v[1];
}

// [0, 1)
constexpr double philox_uniform(uint64_t seed, uint64_t stream, uint64_t counter) {
  return static_cast<double>(philox_bits(seed, stream, counter) >> 11) * 0x1.0p-53;
}

// Numbers that one normal takes: normal i of a stream comes from the counters 2i and 2i + 1.
constexpr uint64_t kCountersPerNormal = 2;

}  // namespace lapidary
