#include "lapidary/core/transfer.h"

#include <algorithm>
#include <cstring>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

void require_alike(const ConstTensor& a, const ConstTensor& b) {
  if (a.shape() == b.shape() && a.dtype() == b.dtype() && a.contiguous() && b.contiguous()) return;
  fail("transfer", "from " + a.shape().str() + " " + name_of(a.dtype()) + " to " + b.shape().str() +
                       " " + name_of(b.dtype()));
}

}  // namespace

Tensor host_tensor(Context& ctx, Dtype dtype, const Shape& shape) {
  return (ctx.target == Backend::cuda ? ctx.staging : ctx.activations).alloc(dtype, shape);
}

void upload(Context& ctx, const ConstTensor& host, const Tensor& to) {
  require_alike(host, to);
  if (ctx.backend == Backend::meta || host.bytes() == 0) return;
  if (ctx.backend == Backend::cuda)
    gpu::upload(to.data(), host.data(), host.bytes(), ctx.stream);
  else
    std::memcpy(to.data(), host.data(), static_cast<size_t>(host.bytes()));
}

void download(Context& ctx, const ConstTensor& from, const Tensor& host) {
  require_alike(from, host);
  if (ctx.backend == Backend::meta || host.bytes() == 0) return;
  if (ctx.backend == Backend::cuda)
    gpu::download(host.data(), from.data(), from.bytes(), ctx.stream);
  else
    std::memcpy(host.data(), from.data(), static_cast<size_t>(from.bytes()));
}

void copy_bytes(Context& ctx, void* to, const void* from, int64_t bytes) {
  if (ctx.backend == Backend::meta || bytes == 0) return;
  if (ctx.backend != Backend::cuda) {
    std::memmove(to, from, static_cast<size_t>(bytes));
    return;
  }
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  // A copy within the GPU must not overlap: pieces as long as the distance don't.
  const int64_t distance = source > target ? source - target : bytes;
  const int64_t piece = std::max<int64_t>(std::min(distance, bytes), 1);
  for (int64_t done = 0; done < bytes; done += piece) {
    gpu::copy(target + done, source + done, std::min(piece, bytes - done), ctx.stream);
  }
}

OwnedTensor to_host(Backend backend, const ConstTensor& t) {
  OwnedTensor out(backend == Backend::meta ? Backend::meta : Backend::cpu, t.dtype(), t.shape());
  Context ctx = Context::make(backend);
  download(ctx, t, out.get());
  return out;
}

}  // namespace lapidary
