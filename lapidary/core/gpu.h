#pragma once

#include <cstdint>
#include <string>

struct CUstream_st;  // what a cudaStream_t points to

// One GPU through the CUDA runtime, which is linked statically: the program starts anywhere. A
// build without CUDA, or a machine without a GPU, answers unavailable() and throws Error from the
// rest. All work is issued to one stream, in program order.
namespace lapidary::gpu {

using Stream = CUstream_st*;

// "" when there is a GPU to use; else why not, for the user.
std::string unavailable();

void* allocate(int64_t bytes);         // on the GPU, zero-filled; Error when memory runs out
void* allocate_pinned(int64_t bytes);  // on the host, page-locked
void release(void* memory) noexcept;
void release_pinned(void* memory) noexcept;

void set_bytes(void* memory, int value, int64_t bytes, Stream stream);
// Host to GPU. Returns when the host memory may change again if it is pageable; from pinned memory
// it returns at once, and the memory must stay as it is until the stream has passed the copy.
void upload(void* gpu, const void* host, int64_t bytes, Stream stream);
void download(void* host, const void* gpu, int64_t bytes, Stream stream);  // waits
void copy(void* to, const void* from, int64_t bytes, Stream stream);       // within the GPU
void synchronize(Stream stream);

struct Device {
  std::string name;
  int64_t total_bytes = 0, free_bytes = 0;
  int multiprocessors = 0;
};
Device device();

// How often this process allocated GPU memory and how often the host waited for the GPU: a training
// step does neither.
struct Counters {
  int64_t allocations = 0, waits = 0;
};
Counters counters();
int64_t peak_bytes();  // most GPU memory that this process held at once through allocate()

}  // namespace lapidary::gpu
