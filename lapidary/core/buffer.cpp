#include "lapidary/core/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"

namespace lapidary {
namespace {

constexpr int64_t kAlignment = 64;
// From here on host memory comes straight from the kernel, zero page by zero page when it is
// touched: a plan for the worst case costs only what is used of it.
constexpr int64_t kMapped = 1 << 20;

size_t rounded(int64_t bytes) {
  return static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
}

// Zero-filled; null when there is none.
void* allocate_host(int64_t bytes) {
  if (bytes >= kMapped) {
    void* data =
        mmap(nullptr, rounded(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? nullptr : data;
  }
  void* data = std::aligned_alloc(static_cast<size_t>(kAlignment), rounded(bytes));
  if (data != nullptr) std::memset(data, 0, rounded(bytes));
  return data;
}

void release_host(void* data, int64_t bytes) {
  if (data != nullptr && bytes >= kMapped)
    munmap(data, rounded(bytes));
  else
    std::free(data);
}

}  // namespace

Buffer::Buffer(Backend backend, int64_t bytes) : backend_(backend), bytes_(bytes) {
  if (backend == Backend::meta || bytes == 0) return;
  if (backend == Backend::cuda) {
    data_ = gpu::allocate(bytes);
    return;
  }
  data_ = backend == Backend::pinned ? gpu::allocate_pinned(static_cast<int64_t>(rounded(bytes)))
                                     : allocate_host(bytes);
  if (data_ == nullptr) {
    fail("buffer", "no memory for " + std::to_string(bytes >> 20) + " MiB",
         "use a smaller batch, a smaller dtype, or recompute: block");
  }
  if (backend == Backend::pinned) std::memset(data_, 0, rounded(bytes));
}

Buffer::~Buffer() {
  if (backend_ == Backend::cuda)
    gpu::release(data_);
  else if (backend_ == Backend::pinned)
    gpu::release_pinned(data_);
  else
    release_host(data_, bytes_);
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
