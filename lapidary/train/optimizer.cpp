#include "lapidary/train/optimizer.h"

#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"
#include "lapidary/core/transfer.h"
#include "lapidary/ops/adamw.h"
#include "lapidary/ops/elementwise.h"

namespace lapidary {
namespace {

// Any tensor as one long row, or as it is when it has two dimensions.
template <class T>
T flat(const T& t) {
  return t.view({1, t.numel()});
}

Dtype kept_in(MomentType type, Dtype acc) {
  return type == MomentType::int8 ? Dtype::u8 : type == MomentType::bf16 ? Dtype::bf16 : acc;
}

}  // namespace

MomentType parse_moment_type(const std::string& text) {
  if (text == "fp32") return MomentType::f32;
  if (text == "bf16") return MomentType::bf16;
  if (text == "int8") return MomentType::int8;
  fail("optimizer", "unknown type of moments \"" + text + "\"", "use fp32, bf16 or int8");
}

AdamW::AdamW(Backend backend, const AdamWOptions& options,
             const std::vector<Parameter*>& parameters, const FirstElement& first_element)
    : backend_(backend),
      options_(options),
      squares_(backend, Dtype::f64, {2}),
      norm_(backend, Dtype::f64, {1}),
      scale_(backend, Dtype::f64, {1}) {
  Context ctx = Context::make(backend);
  for (Parameter* p : parameters) {
    if (p->buffer || !p->trainable) continue;
    entry_of_.emplace(p, entries_.size());
    entries_.push_back(make_entry(ctx, *p, first_element ? first_element(*p) : 0));
  }
}

AdamW::Entry AdamW::make_entry(Context& ctx, Parameter& p, int64_t first_element) const {
  const Dtype acc = accumulate_dtype(p.value.dtype());
  const Dtype kept = kept_in(options_.moments, acc);
  Entry entry{.parameter = &p,
              .m = OwnedTensor(backend_, kept, p.shape),
              .v = OwnedTensor(backend_, kept, p.shape),
              .m_scale = {},
              .v_scale = {},
              .master = {},
              .stream = stream_of(p.name.c_str()),
              .first_element = first_element};
  if (kept == Dtype::u8) {
    const Shape blocks{(p.shape.numel() + ops::kQuantBlock - 1) / ops::kQuantBlock};
    entry.m_scale = OwnedTensor(backend_, acc, blocks);
    entry.v_scale = OwnedTensor(backend_, acc, blocks);
  }
  if (acc != p.value.dtype() && options_.master_weights) {
    entry.master = OwnedTensor(backend_, acc, p.shape);
    ops::axpby(ctx, {.a = flat(p.value), .out = flat(entry.master.get())});
  }
  return entry;
}

void AdamW::begin_step() {
  ++steps_;
  max_norm_.reset();
}

void AdamW::reset_squares(Context& ctx) { ops::fill_zero(ctx, squares_.get()); }

void AdamW::add_squares(Context& ctx, const Parameter& parameter) {
  if (entry_of_.count(&parameter) == 0) return;
  const auto kind = static_cast<int64_t>(parameter.placement);
  ops::sum_of_squares(ctx, {.t = parameter.grad, .sum = squares_->slice(0, kind, 1)});
}

void AdamW::add_squares(Context& ctx) {
  for (const Entry& entry : entries_) add_squares(ctx, *entry.parameter);
}

void AdamW::find_norm(Context& ctx) {
  ops::clip_scale(ctx, {.sum = squares_.get(),
                        .max_norm = max_norm_.value_or(0.0),
                        .norm = norm_.get(),
                        .scale = scale_.get()});
}

void AdamW::clip(Context& ctx, double max_norm) {
  max_norm_ = max_norm;
  find_norm(ctx);
}

void AdamW::update(Context& ctx, const Entry& entry, double lr, double weight_decay) {
  const Parameter& p = *entry.parameter;
  const bool half = p.value.dtype() == Dtype::bf16;
  ops::adamw(ctx, {.param = p.value,
                   .master = entry.master.get(),
                   .grad = p.grad,
                   .m = entry.m.get(),
                   .v = entry.v.get(),
                   .m_scale = entry.m_scale.get(),
                   .v_scale = entry.v_scale.get(),
                   .scale = max_norm_ ? scale_.get() : Tensor(),
                   .lr = lr,
                   .beta1 = options_.beta1,
                   .beta2 = options_.beta2,
                   .eps = options_.eps,
                   .weight_decay = weight_decay,
                   .step = steps_,
                   .stochastic_rounding = half && !entry.master->defined(),
                   .seed = options_.seed,
                   .stream = entry.stream,
                   .first_element = entry.first_element});
}

void AdamW::update(Context& ctx, Parameter& parameter, double lr, double weight_decay) {
  const auto found = entry_of_.find(&parameter);
  if (found != entry_of_.end()) update(ctx, entries_[found->second], lr, weight_decay);
}

void AdamW::step(Context& ctx, double lr, double weight_decay) {
  for (const Entry& entry : entries_) update(ctx, entry, lr, weight_decay);
}

double AdamW::grad_norm(Context& ctx) {
  reset_squares(ctx);
  add_squares(ctx);
  find_norm(ctx);
  double norm = 0.0;
  download(ctx, norm_.get(), Tensor(&norm, Dtype::f64, {1}));
  return norm;
}

int64_t AdamW::num_trainable() const {
  int64_t n = 0;
  for (const Entry& entry : entries_) n += entry.parameter->shape.numel();
  return n;
}

int64_t AdamW::state_bytes() const {
  int64_t bytes = 0;
  for (const Entry& e : entries_) {
    for (const OwnedTensor* t : {&e.m, &e.v, &e.m_scale, &e.v_scale, &e.master}) {
      bytes += t->get().bytes();
    }
  }
  return bytes;
}

}  // namespace lapidary
