#include "lapidary/core/buffer.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"

namespace lapidary {
namespace {

constexpr int64_t kAlignment = 64;

}  // namespace

Buffer::Buffer(Backend backend, int64_t bytes) : backend_(backend), bytes_(bytes) {
  if (backend == Backend::meta || bytes == 0) return;
  if (backend == Backend::cuda) {
    data_ = gpu::allocate(bytes);
    return;
  }
  const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (backend == Backend::pinned) {
    data_ = gpu::allocate_pinned(rounded);
  } else {
    data_ = std::aligned_alloc(static_cast<size_t>(kAlignment), static_cast<size_t>(rounded));
  }
  if (data_ == nullptr) {
    fail("buffer", "no memory for " + std::to_string(bytes >> 20) + " MiB",
         "use a smaller batch, a smaller dtype, or recompute: block");
  }
  std::memset(data_, 0, static_cast<size_t>(rounded));
}

Buffer::~Buffer() {
  if (backend_ == Backend::cuda)
    gpu::release(data_);
  else if (backend_ == Backend::pinned)
    gpu::release_pinned(data_);
  else
    std::free(data_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : backend_(other.backend_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace lapidary
