#pragma once

#include <algorithm>
#include <cstdint>

namespace lapidary {

// Whole numbers begin .. end - 1; elements of a flattened tensor, rows, experts.
struct Interval {
  int64_t begin = 0;
  int64_t end = 0;
  constexpr int64_t size() const { return end - begin; }
  constexpr bool empty() const { return end <= begin; }
  constexpr bool operator==(const Interval&) const = default;
};

// What both contain; empty intervals come back as {x, x}.
constexpr Interval intersect(const Interval& a, const Interval& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

constexpr Interval shifted(const Interval& a, int64_t by) { return {a.begin + by, a.end + by}; }

// Part `index` of n things that are dealt to `parts`, the remainder to the first of them. The parts
// are disjoint, in order, and together 0 .. n - 1.
constexpr Interval dealt(int64_t n, int64_t parts, int64_t index) {
  const int64_t each = n / parts, more = n % parts;
  const int64_t begin = index * each + std::min(index, more);
  return {begin, begin + each + (index < more ? 1 : 0)};
}

// The part of dealt(n, parts, .) that thing `index` belongs to.
constexpr int64_t dealt_to(int64_t n, int64_t parts, int64_t index) {
  const int64_t each = n / parts, more = n % parts;
  const int64_t longer = (each + 1) * more;  // things of the parts that have one more
  return index < longer ? index / (each + 1) : more + (index - longer) / each;
}

// Elements of each of `parts` equal chunks that hold n, a multiple of `align`; the last ones may
// reach beyond n.
constexpr int64_t chunk_size(int64_t n, int64_t parts, int64_t align = 1) {
  const int64_t chunk = (n + parts - 1) / parts;
  return (chunk + align - 1) / align * align;
}

// Chunk `index` of them, without what lies beyond n.
constexpr Interval chunk_of(int64_t n, int64_t parts, int64_t index, int64_t align = 1) {
  const int64_t chunk = chunk_size(n, parts, align);
  return {std::min(n, index * chunk), std::min(n, (index + 1) * chunk)};
}

}  // namespace lapidary
