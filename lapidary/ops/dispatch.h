#pragma once

#include <string>

#include "lapidary/core/context.h"
#include "lapidary/core/error.h"

namespace lapidary::ops {

// Runs the backend's version of an operation. On the meta backend `meta` runs instead: it only
// takes from ctx.scratch what the cpu version would take, so that a dry run measures it.
template <class Cpu, class Ref, class Meta>
void dispatch(Context& ctx, const char* op, Cpu&& cpu, Ref&& ref, Meta&& meta) {
  const ProfileScope scope(ctx.profiler, op);
  switch (ctx.backend) {
    case Backend::cpu: return cpu();
    case Backend::ref: return ref();
    case Backend::meta: return meta();
    case Backend::cuda: fail(op, "this build has no CUDA", "use device cpu");
  }
}

template <class Cpu, class Ref>
void dispatch(Context& ctx, const char* op, Cpu&& cpu, Ref&& ref) {
  dispatch(ctx, op, cpu, ref, [] {});
}

// Takes `bytes` from the scratch arena and gives them back: the meta version of an op with scratch.
inline void count_scratch(Context& ctx, int64_t bytes) {
  ArenaScope scope(ctx.scratch);
  ctx.scratch.alloc(Dtype::u8, {bytes});
}

// The shape and dtype rules of an operation, checked before dispatch.
class Check {
 public:
  explicit Check(const char* op) : op_(op) {}
  void shape(const char* name, const ConstTensor& t, const Shape& expected) const {
    if (t.shape() == expected) return;
    fail(op_, std::string(name) + " is " + t.shape().str() + ", expected " + expected.str());
  }
  void dtype(const char* name, const ConstTensor& t, Dtype expected) const {
    if (t.dtype() == expected) return;
    fail(op_, std::string(name) + " is " + name_of(t.dtype()) + ", expected " + name_of(expected));
  }
  void tensor(const char* name, const ConstTensor& t, const Shape& s, Dtype d) const {
    shape(name, t, s);
    dtype(name, t, d);
  }
  // As tensor(), for arguments that may be left out.
  void optional(const char* name, const ConstTensor& t, const Shape& s, Dtype d) const {
    if (t.defined()) tensor(name, t, s, d);
  }
  void rank(const char* name, const ConstTensor& t, int expected) const {
    if (t.rank() == expected) return;
    fail(op_, std::string(name) + " has shape " + t.shape().str() + ", expected rank " +
                  std::to_string(expected));
  }
  void that(bool ok, const std::string& what) const {
    if (!ok) fail(op_, what);
  }

 private:
  const char* op_;
};

}  // namespace lapidary::ops
