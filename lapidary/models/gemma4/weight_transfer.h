#pragma once

#include <functional>

#include "lapidary/core/context.h"

namespace lapidary::gemma4 {

// Brings weights from the host to the memory of a backend and back.
class WeightTransfer {
 public:
  explicit WeightTransfer(Backend backend) : ctx_(Context::make(backend)) {}
  ~WeightTransfer();
  WeightTransfer(const WeightTransfer&) = delete;
  WeightTransfer& operator=(const WeightTransfer&) = delete;

  // fill(first, piece) writes elements [first, first + piece.numel()) of `to` (contiguous) to
  // `piece` [n], on the host. On cuda the pieces are page-locked memory, and one is filled while
  // the one before travels.
  using Fill = std::function<void(int64_t first, const Tensor& piece)>;
  void send(const Tensor& to, const Fill& fill);

  // out = elements [first, first + count) of `from`, on the host.
  void fetch(const ConstTensor& from, int64_t first, int64_t count, void* out);

 private:
  Context ctx_;
  Buffer pieces_[2];
  int next_ = 0;
};

}  // namespace lapidary::gemma4
