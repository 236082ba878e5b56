#include "lapidary/models/gemma4/weight_transfer.h"

#include <algorithm>

#include "lapidary/core/transfer.h"

namespace lapidary::gemma4 {
namespace {

constexpr int64_t kPieceBytes = int64_t{64} << 20;

}  // namespace

WeightTransfer::~WeightTransfer() {
  if (ctx_.backend != Backend::cuda || pieces_[0].data() == nullptr) return;
  try {
    gpu::synchronize(ctx_.stream);  // before the pieces go
  } catch (...) {                   // the error was or will be reported by the work that met it
  }
}

void WeightTransfer::send(const Tensor& to, const Fill& fill) {
  const Tensor flat = to.view({to.numel()});
  if (ctx_.backend != Backend::cuda) return fill(0, flat);
  const int64_t piece = kPieceBytes / size_of(to.dtype());
  for (int64_t first = 0; first < to.numel(); first += piece) {
    const int64_t count = std::min(piece, to.numel() - first);
    Buffer& buffer = pieces_[next_];
    if (buffer.data() == nullptr) {
      buffer = Buffer(Backend::pinned, kPieceBytes);
    } else if (next_ == 0) {
      gpu::synchronize(ctx_.stream);
    }
    next_ = 1 - next_;
    const Tensor host(buffer.data(), to.dtype(), {count});
    fill(first, host);
    upload(ctx_, host, flat.slice(0, first, count));
  }
}

void WeightTransfer::fetch(const ConstTensor& from, int64_t first, int64_t count, void* out) {
  download(ctx_, from.view({from.numel()}).slice(0, first, count),
           Tensor(out, from.dtype(), {count}));
}

}  // namespace lapidary::gemma4
