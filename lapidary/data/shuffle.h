#pragma once

#include <cstdint>
#include <vector>

namespace lapidary {

// 0 .. count-1, in order, or shuffled (Fisher-Yates) as seed, purpose and round alone decide.
std::vector<int64_t> shuffled_order(int64_t count, bool shuffle, uint64_t seed, const char* purpose,
                                    int64_t round);

}  // namespace lapidary
