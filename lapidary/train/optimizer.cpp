#include "lapidary/train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "lapidary/ops/adamw.h"
#include "lapidary/ops/elementwise.h"

namespace lapidary {
namespace {

// Any tensor as one long row, or as it is when it has two dimensions.
template <class T>
T flat(const T& t) {
  return t.view({1, t.numel()});
}

}  // namespace

AdamW::AdamW(Backend backend, const AdamWOptions& options,
             const std::vector<Parameter*>& parameters)
    : options_(options) {
  Context ctx = Context::make(backend);
  for (Parameter* p : parameters) {
    if (!p->grad.defined()) continue;
    const Dtype acc = accumulate_dtype(p->value.dtype());
    Entry entry{p, OwnedTensor(backend, acc, p->shape), OwnedTensor(backend, acc, p->shape), {}};
    if (acc != p->value.dtype()) {
      entry.master = OwnedTensor(backend, acc, p->shape);
      ops::axpby(ctx, {.a = flat(p->value), .out = flat(entry.master.get())});
    }
    entries_.push_back(std::move(entry));
  }
}

double AdamW::grad_norm(Context& ctx, double grad_scale) const {
  double sum = 0.0;
  const Tensor total(&sum, Dtype::f64, {1});
  for (const Entry& entry : entries_) {
    ops::sum_of_squares(ctx, {.t = entry.parameter->grad, .sum = total});
  }
  return grad_scale * std::sqrt(sum);
}

void AdamW::step(Context& ctx, double lr, double weight_decay, double grad_scale) {
  ++steps_;
  for (Entry& entry : entries_) {
    ops::adamw(ctx, {.param = entry.parameter->value,
                     .master = entry.master.get(),
                     .grad = entry.parameter->grad,
                     .m = entry.m.get(),
                     .v = entry.v.get(),
                     .grad_scale = grad_scale,
                     .lr = lr,
                     .beta1 = options_.beta1,
                     .beta2 = options_.beta2,
                     .eps = options_.eps,
                     .weight_decay = weight_decay,
                     .step = steps_});
  }
}

int64_t AdamW::num_trainable() const {
  int64_t n = 0;
  for (const Entry& entry : entries_) n += entry.parameter->shape.numel();
  return n;
}

int64_t AdamW::state_bytes() const {
  int64_t bytes = 0;
  for (const Entry& entry : entries_) {
    bytes += entry.m->bytes() + entry.v->bytes() + entry.master->bytes();
  }
  return bytes;
}

double clip_factor(double grad_norm, double max_norm) {
  return max_norm > 0.0 ? std::min(1.0, max_norm / (grad_norm + 1e-6)) : 1.0;
}

}  // namespace lapidary
