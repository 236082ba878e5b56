#pragma once

#include "lapidary/core/device.h"
#include "lapidary/core/tensor.h"

namespace lapidary {

// Owns memory: parameters, gradients, optimiser state. 64-byte aligned, zero-filled. On
// cuda it lies on the GPU, where only operations and lapidary/core/transfer.h reach it; on the meta
// backend it owns nothing and data() is null. Throws Error when memory runs out.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend backend, int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Backend backend_ = Backend::cpu;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A Buffer with the view that fills it.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(Backend backend, Dtype dtype, const Shape& shape)
      : buffer_(backend, shape.numel() * size_of(dtype)), view_(buffer_.data(), dtype, shape) {}
  const Tensor& get() const { return view_; }
  const Tensor* operator->() const { return &view_; }

 private:
  Buffer buffer_;
  Tensor view_;
};

}  // namespace lapidary
