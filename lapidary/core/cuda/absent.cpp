// lapidary::gpu of a build without CUDA.
#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"

namespace lapidary::gpu {
namespace {

[[noreturn]] void missing() { fail("cuda", unavailable(), "use device cpu"); }

}  // namespace

std::string unavailable() {
  return "this build has no CUDA (nvcc was not found when it was configured)";
}
void* allocate(int64_t) { missing(); }
void* allocate_pinned(int64_t) { missing(); }
void release(void*) noexcept {}
void release_pinned(void*) noexcept {}
void set_bytes(void*, int, int64_t, Stream) { missing(); }
void upload(void*, const void*, int64_t, Stream) { missing(); }
void download(void*, const void*, int64_t, Stream) { missing(); }
void copy(void*, const void*, int64_t, Stream) { missing(); }
void synchronize(Stream) { missing(); }
Device device() { missing(); }
Counters counters() { return {}; }
int64_t peak_bytes() { return 0; }

}  // namespace lapidary::gpu
