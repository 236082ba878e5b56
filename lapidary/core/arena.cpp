#include "lapidary/core/arena.h"

#include <algorithm>
#include <cstring>

#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"

namespace lapidary {
namespace {

constexpr int64_t kAlignment = 64;

}  // namespace

Arena::Arena(const char* name, Backend backend, int64_t capacity)
    : name_(name),
      buffer_(capacity == kCounting ? Backend::meta : backend, std::max<int64_t>(capacity, 0)),
      backend_(backend),
      capacity_(capacity) {}

Tensor Arena::alloc(Dtype dtype, const Shape& shape) {
  const int64_t bytes = shape.numel() * size_of(dtype);
  const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (capacity_ != kCounting && used_ + rounded > capacity_) {
    fail(std::string(name_) + " arena",
         "is full: " + std::to_string(used_) + " of " + std::to_string(capacity_) +
             " bytes used, " + std::to_string(rounded) + " more wanted for " + shape.str(),
         "the memory plan was made for a smaller batch");
  }
  void* data = buffer_.data() == nullptr ? nullptr : static_cast<char*>(buffer_.data()) + used_;
  used_ += rounded;
  peak_ = std::max(peak_, used_);
  if (poison_ && data != nullptr) poison(data, rounded);
  return {data, dtype, shape};
}

void Arena::poison(void* data, int64_t bytes) const {
  if (backend_ == Backend::cuda)
    gpu::set_bytes(data, 0xff, bytes, nullptr);
  else
    std::memset(data, 0xff, static_cast<size_t>(bytes));
}

}  // namespace lapidary
