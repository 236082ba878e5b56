#pragma once

#include "lapidary/core/buffer.h"

namespace lapidary {

// LIFO memory for activations and scratch: alloc() pushes, rewind() pops everything above a mark.
// Memory is not cleared. A counting arena (capacity kCounting) hands out null pointers and only
// measures, so that a dry run on the meta backend yields the capacity that a step needs.
class Arena {
 public:
  static constexpr int64_t kCounting = -1;

  Arena() = default;
  // name: appears in the message when the arena is full.
  Arena(const char* name, Backend backend, int64_t capacity);

  Tensor alloc(Dtype dtype, const Shape& shape);
  int64_t mark() const { return used_; }
  void rewind(int64_t mark) { used_ = mark; }
  int64_t peak() const { return peak_; }
  int64_t capacity() const { return capacity_; }
  // Tests: fill what alloc() returns with bytes that read as NaN.
  void set_poison(bool poison) { poison_ = poison; }

 private:
  const char* name_ = "arena";
  void poison(void* data, int64_t bytes) const;
  Buffer buffer_;
  Backend backend_ = Backend::cpu;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
  int64_t peak_ = 0;
  bool poison_ = false;
};

// Rewinds an arena at the end of a block.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace lapidary
