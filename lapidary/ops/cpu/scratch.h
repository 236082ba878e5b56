#pragma once

#include <cstdint>

#include "lapidary/core/context.h"

namespace lapidary::ops::cpu {

// Cuts one block of memory into aligned pieces. With a null base it only measures: the layout of an
// operation's scratch is written once and serves both to size and to place it.
class Carver {
 public:
  explicit Carver(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    used_ += (bytes + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  int64_t bytes() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// The base of a block of `bytes` from the scratch arena; the caller holds the ArenaScope.
inline void* scratch_block(Context& ctx, int64_t bytes) {
  return ctx.scratch.alloc(Dtype::u8, {bytes}).data();
}

}  // namespace lapidary::ops::cpu
