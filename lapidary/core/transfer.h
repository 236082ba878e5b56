#pragma once

#include "lapidary/core/context.h"

// Between the host and the memory of a context: plain copies on the host backends, nothing on meta.
namespace lapidary {

// Memory for something that the host writes and operations read: the arena of activations, or on
// cuda the staging arena. on_device() then gives what operations read. The staging arena must not
// be rewound before the stream has passed the copy (a download waits for that).
Tensor host_tensor(Context& ctx, Dtype dtype, const Shape& shape);
// Same shape and dtype, contiguous both. download() waits for the GPU.
void upload(Context& ctx, const ConstTensor& host, const Tensor& to);
void download(Context& ctx, const ConstTensor& from, const Tensor& host);
// `host` (contiguous) itself, or on cuda its copy in the arena of activations.
template <class AnyTensor>
AnyTensor on_device(Context& ctx, const AnyTensor& host) {
  if (ctx.target != Backend::cuda || !host.defined()) return host;
  const Tensor device = ctx.activations.alloc(host.dtype(), host.shape());
  upload(ctx, host, device);
  return device;
}
// Within the memory of the backend; the ranges may overlap when `to` lies before `from`.
void copy_bytes(Context& ctx, void* to, const void* from, int64_t bytes);

// Any tensor of the backend, contiguous, as one on the host.
OwnedTensor to_host(Backend backend, const ConstTensor& t);

}  // namespace lapidary
