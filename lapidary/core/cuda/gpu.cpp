#include "lapidary/core/gpu.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>

#include "lapidary/core/error.h"

namespace lapidary::gpu {
namespace {

std::atomic<int64_t> allocations{0}, waits{0};

// Sizes of what is allocated, for the peak.
struct Ledger {
  std::mutex mutex;
  std::map<void*, int64_t> sizes;
  int64_t held = 0, peak = 0;
};
Ledger& ledger() {
  static auto* const all = new Ledger;  // outlives every static Buffer
  return *all;
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail(what, cudaGetErrorString(error),
       error == cudaErrorMemoryAllocation
           ? "use a smaller batch, 8-bit optimiser state, or recompute: block"
           : "");
}

size_t size(int64_t bytes) { return static_cast<size_t>(bytes); }

void require() {
  static const std::string missing = unavailable();
  if (!missing.empty()) fail("cuda", missing, "use device cpu");
}

}  // namespace

std::string unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) return "no NVIDIA driver, or one too old for CUDA 13";
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return "this machine has no NVIDIA GPU";
  if (error != cudaSuccess) return cudaGetErrorString(error);
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return "the GPU does not answer";
  if (properties.major < 9) {
    return std::string(properties.name) + " is older than Hopper (compute capability 9.0)";
  }
  return "";
}

void* allocate(int64_t bytes) {
  require();
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  ++allocations;
  check(cudaMalloc(&memory, size(bytes)),
        ("GPU memory, " + std::to_string(bytes >> 20) + " MiB").c_str());
  check(cudaMemset(memory, 0, size(bytes)), "cudaMemset");
  Ledger& all = ledger();
  const std::lock_guard lock(all.mutex);
  all.sizes[memory] = bytes;
  all.held += bytes;
  all.peak = std::max(all.peak, all.held);
  return memory;
}

void* allocate_pinned(int64_t bytes) {
  require();
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  ++allocations;
  check(cudaMallocHost(&memory, size(bytes)), "page-locked host memory");
  return memory;
}

void release(void* memory) noexcept {
  if (memory == nullptr) return;
  Ledger& all = ledger();
  const std::lock_guard lock(all.mutex);
  all.held -= all.sizes[memory];
  all.sizes.erase(memory);
  cudaFree(memory);
}

void release_pinned(void* memory) noexcept { cudaFreeHost(memory); }

void set_bytes(void* memory, int value, int64_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemsetAsync(memory, value, size(bytes), stream), "cudaMemsetAsync");
}

void upload(void* gpu, const void* host, int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(gpu, host, size(bytes), cudaMemcpyHostToDevice, stream), "upload");
}

void download(void* host, const void* gpu, int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, gpu, size(bytes), cudaMemcpyDeviceToHost, stream), "download");
  synchronize(stream);
}

void copy(void* to, const void* from, int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, size(bytes), cudaMemcpyDeviceToDevice, stream), "copy");
}

void synchronize(Stream stream) {
  ++waits;
  check(cudaStreamSynchronize(stream), "the GPU");
}

Device device() {
  require();
  cudaDeviceProp properties{};
  size_t free = 0, total = 0;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {properties.name, static_cast<int64_t>(total), static_cast<int64_t>(free),
          properties.multiProcessorCount};
}

Counters counters() { return {allocations, waits}; }

int64_t peak_bytes() {
  Ledger& all = ledger();
  const std::lock_guard lock(all.mutex);
  return all.peak;
}

}  // namespace lapidary::gpu
