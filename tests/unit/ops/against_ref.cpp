#include "tests/unit/ops/against_ref.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "lapidary/core/transfer.h"

namespace lapidary::test {
namespace {

double eps(Dtype dtype) { return dtype == Dtype::bf16 ? 0x1p-7 : 0x1p-23; }

}  // namespace

double tolerance(Dtype stored, int64_t terms, Dtype factor) {
  const double sum = 8.0 + 4.0 * std::sqrt(static_cast<double>(terms));
  const double factors = factor == Dtype::bf16 ? eps(factor) : 0.0;
  return (stored == Dtype::bf16 ? eps(stored) : 0.0) + eps(Dtype::f32) * sum + factors;
}

// owners[i] holds views.tensors[i], with gaps around it or without.
struct Call::Copies {
  std::vector<OwnedTensor> owners;
  Args views;
};

bool Call::same(const Copies& a, const Copies& b) {
  for (size_t i = 0; i < a.owners.size(); ++i) {
    if (!same_bits(a.views.tensors[i], b.views.tensors[i])) return false;
  }
  return true;
}

int Call::add(Item item) {
  items_.push_back(std::move(item));
  return static_cast<int>(items_.size()) - 1;
}

int Call::input(const OwnedTensor& value) {
  return add({Role::input, dtype_, Dtype::f64, "", cast(value.get(), dtype_), value->shape(), 0.0});
}
int Call::input_acc(const OwnedTensor& value) {
  return add({Role::input, Dtype::f32, Dtype::f64, "", cast(value.get(), Dtype::f32),
              value->shape(), 0.0});
}
int Call::integers(const OwnedTensor& value) {
  const Dtype d = value->dtype();
  return add({Role::input, d, d, "", cast(value.get(), d), value->shape(), 0.0});
}
int Call::written(const char* name, const Shape& shape, double tolerance) {
  return add({Role::output, dtype_, Dtype::f64, name, {}, shape, tolerance});
}
int Call::written_acc(const char* name, const Shape& shape, double tolerance) {
  return add({Role::output, Dtype::f32, Dtype::f64, name, {}, shape, tolerance});
}
int Call::written_integers(const char* name, Dtype dtype, const Shape& shape) {
  return add({Role::output, dtype, dtype, name, {}, shape, 0.0});
}
int Call::added(const char* name, const OwnedTensor& start, double tolerance) {
  return added_as(dtype_, name, start, tolerance);
}
int Call::added_acc(const char* name, const OwnedTensor& start, double tolerance) {
  return added_as(Dtype::f32, name, start, tolerance);
}
int Call::added_as(Dtype stored, const char* name, const OwnedTensor& start, double tolerance) {
  const bool integer =
      size_of(start->dtype()) == 1 || start->dtype() == Dtype::i64 || start->dtype() == Dtype::i32;
  return add({Role::output, stored, integer ? stored : Dtype::f64, name, cast(start.get(), stored),
              start->shape(), tolerance});
}

Call::Copies Call::copies(bool reference) const {
  Copies out;
  for (const Item& item : items_) {
    const Dtype d = reference ? item.ref : item.stored;
    OwnedTensor t = item.start->defined() ? cast(item.start.get(), d) : poisoned(d, item.shape);
    Tensor view = t.get();
    if (!reference && strided_ && item.shape.rank() >= 2) {
      Spread wide = spread(t.get());
      t = std::move(wide.base);
      view = wide.view;
    }
    out.owners.push_back(std::move(t));
    out.views.tensors.push_back(view);
  }
  return out;
}

namespace {

// The tensors of one run in the memory of a backend that is not the host.
struct Sent {
  std::vector<OwnedTensor> owners;
  std::vector<Tensor> views;

  Sent(Context& ctx, const std::vector<OwnedTensor>& from, const std::vector<Tensor>& parts) {
    for (size_t i = 0; i < from.size(); ++i) {
      owners.emplace_back(ctx.backend, from[i]->dtype(), from[i]->shape());
      upload(ctx, from[i].get(), owners.back().get());
      Tensor view = owners.back().get();
      if (parts[i].shape() != view.shape()) {
        for (int k = 1; k < view.rank(); ++k) view = view.slice(k, 1, parts[i].dim(k));
      }
      views.push_back(view);
    }
  }
  void fetch(Context& ctx, const std::vector<OwnedTensor>& to) const {
    for (size_t i = 0; i < to.size(); ++i) download(ctx, owners[i].get(), to[i].get());
  }
};

}  // namespace

Call::Copies Call::run_once(const Run& run, int64_t scratch) const {
  Copies t = copies(false);
  Context ctx = Context::make(test_backend(), {0, scratch});
  ctx.scratch.set_poison(true);
  if (on_host(ctx.backend)) {
    run(ctx, t.views);
  } else {
    const Sent sent(ctx, t.owners, t.views.tensors);
    run(ctx, {sent.views});
    sent.fetch(ctx, t.owners);
  }
  EXPECT_EQ(ctx.scratch.peak(), scratch) << "scratch memory differs from the dry run's";
  EXPECT_EQ(ctx.scratch.mark(), 0);
  return t;
}

void Call::compare(const Run& run, bool any_threads) const {
  Context meta = Context::meta(test_backend());
  const Copies before = copies(false);
  run(meta, before.views);
  const Copies got = run_once(run, meta.scratch.peak());
  const Copies expected = copies(true);
  Context ref = Context::make(Backend::ref, {0, int64_t{1} << 26});
  run(ref, expected.views);
  for (size_t n = 0; n < items_.size(); ++n) {
    const int i = static_cast<int>(n);
    if (items_[n].role == Role::input) {
      EXPECT_TRUE(same_bits(got.views[i], before.views[i])) << "input " << i << " changed";
    } else {
      EXPECT_LE(peak_error(got.views[i], expected.views[i]), items_[n].tolerance)
          << items_[n].name << " " << items_[n].shape.str();
    }
  }
  EXPECT_TRUE(same(got, run_once(run, meta.scratch.peak()))) << "two runs differ";
  if (!any_threads || !on_host(test_backend())) return;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  Context single = Context::meta();
  run(single, before.views);
  EXPECT_TRUE(same(got, run_once(run, single.scratch.peak()))) << "the number of threads shows";
  omp_set_num_threads(threads);
}

void for_each_form(const std::function<void(Dtype, bool)>& f) {
  for (const Dtype d : {Dtype::f32, Dtype::bf16}) {
    for (const bool strided : {false, true}) {
      SCOPED_TRACE(std::string(name_of(d)) + (strided ? " strided" : " dense"));
      f(d, strided);
    }
  }
}

}  // namespace lapidary::test
