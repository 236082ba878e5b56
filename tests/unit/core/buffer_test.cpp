#include "lapidary/core/buffer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <utility>

namespace lapidary {
namespace {

constexpr int64_t kMiB = 1 << 20;

int64_t resident_bytes() {
  int64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(Buffer, IsZeroFilledAndAlignedAtEverySize) {
  for (const int64_t bytes : {int64_t{1}, int64_t{65}, kMiB - 1, kMiB, kMiB + 1, 3 * kMiB}) {
    for (int turn = 0; turn < 2; ++turn) {  // the second may get what the first has written
      const Buffer buffer(Backend::cpu, bytes);
      char* data = static_cast<char*>(buffer.data());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0U);
      EXPECT_TRUE(std::all_of(data, data + bytes, [](char c) { return c == 0; })) << bytes;
      std::fill(data, data + bytes, char{1});
    }
  }
}

TEST(Buffer, MovesBetweenSizes) {
  Buffer large(Backend::cpu, 2 * kMiB), small(Backend::cpu, 64);
  static_cast<char*>(large.data())[kMiB] = 7;
  std::swap(large, small);
  EXPECT_EQ(large.bytes(), 64);
  EXPECT_EQ(static_cast<char*>(small.data())[kMiB], 7);
  large = std::move(small);
  EXPECT_EQ(static_cast<char*>(large.data())[kMiB], 7);
}

TEST(Buffer, CostsOnlyWhatIsTouched) {
  const int64_t before = resident_bytes();
  const Buffer buffer(Backend::cpu, 256 * kMiB);
  EXPECT_LT(resident_bytes() - before, 64 * kMiB);
  EXPECT_EQ(static_cast<char*>(buffer.data())[255 * kMiB], 0);
}

}  // namespace
}  // namespace lapidary
