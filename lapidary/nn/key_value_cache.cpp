#include <algorithm>

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "lapidary/nn/attention.h"

namespace lapidary::nn {
namespace {

int64_t token_bytes(const ConstTensor& t) { return t.stride(1) * size_of(t.dtype()); }

char* at(const Tensor& t, int64_t row, int64_t token) {
  return static_cast<char*>(t.data()) + (row * t.dim(1) + token) * token_bytes(t);
}

}  // namespace

KeyValueCache::KeyValueCache(Backend backend, Dtype dtype, const Shape& bthd, int64_t keep)
    : k_(backend, dtype, bthd), v_(backend, dtype, bthd), keep_(keep) {}

KeyValues KeyValueCache::append(Context& ctx, const KeyValues& fresh) {
  const int64_t count = fresh.k.dim(1);
  if (length_ + count > k_->dim(1)) {
    fail("generate", "the cache holds " + std::to_string(k_->dim(1)) + " tokens, " +
                         std::to_string(length_ + count) + " are needed");
  }
  const int64_t bytes = count * token_bytes(fresh.k);
  for (int64_t b = 0; b < fresh.k.dim(0) && k_->data() != nullptr; ++b) {
    copy_bytes(ctx, at(k_.get(), b, length_), at(fresh.k, b, 0), bytes);
    copy_bytes(ctx, at(v_.get(), b, length_), at(fresh.v, b, 0), bytes);
  }
  length_ += count;
  return {k_->slice(1, 0, length_), v_->slice(1, 0, length_)};
}

void KeyValueCache::make_room(Context& ctx, int64_t count) {
  const int64_t surplus = length_ - keep_;
  if (surplus <= 0 || length_ + count <= k_->dim(1)) return;
  const int64_t bytes = keep_ * token_bytes(k_.get());
  for (int64_t b = 0; b < k_->dim(0) && k_->data() != nullptr; ++b) {
    copy_bytes(ctx, at(k_.get(), b, 0), at(k_.get(), b, surplus), bytes);
    copy_bytes(ctx, at(v_.get(), b, 0), at(v_.get(), b, surplus), bytes);
  }
  length_ = keep_;
  first_ += surplus;
}

}  // namespace lapidary::nn
