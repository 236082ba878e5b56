#include "lapidary/core/buffer.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

constexpr int64_t kAlignment = 64;

}  // namespace

Buffer::Buffer(Backend backend, int64_t bytes) : bytes_(bytes) {
  if (backend == Backend::cuda) fail("buffer", "this build has no CUDA");
  if (backend == Backend::meta || bytes == 0) return;
  const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  data_ = std::aligned_alloc(static_cast<size_t>(kAlignment), static_cast<size_t>(rounded));
  if (data_ == nullptr) {
    fail("buffer", "no memory for " + std::to_string(bytes >> 20) + " MiB",
         "use a smaller batch, a smaller dtype, or recompute: block");
  }
  std::memset(data_, 0, static_cast<size_t>(rounded));
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace lapidary
