#pragma once

#include <string>

#include "lapidary/core/context.h"
#include "lapidary/core/error.h"

namespace lapidary::ops {

// The versions of one operation. *_scratch: bytes that it takes from ctx.scratch; null = none.
template <class Args>
struct Versions {
  void (*cpu)(Context&, const Args&);
  void (*ref)(Context&, const Args&);
  void (*cuda)(Context&, const Args&);
  int64_t (*cpu_scratch)(const Args&) = nullptr;
  int64_t (*cuda_scratch)(const Args&) = nullptr;
};

// Runs the backend's version of an operation. On the meta backend it only takes from ctx.scratch
// what the version of ctx.target would take, so that a dry run measures it.
template <class Args>
void dispatch(Context& ctx, const char* op, const Args& args, const Versions<Args>& versions) {
  const ProfileScope scope(ctx.profiler, op, ctx.backend == Backend::cuda ? &ctx.stream : nullptr);
  switch (ctx.backend) {
    case Backend::cpu: return versions.cpu(ctx, args);
    case Backend::ref: return versions.ref(ctx, args);
    case Backend::cuda: return versions.cuda(ctx, args);
    case Backend::meta: {
      const auto scratch =
          ctx.target == Backend::cuda ? versions.cuda_scratch : versions.cpu_scratch;
      if (scratch == nullptr) return;
      const ArenaScope memory(ctx.scratch);
      ctx.scratch.alloc(Dtype::u8, {scratch(args)});
      return;
    }
    case Backend::pinned: break;
  }
  fail(op, std::string("does not run on ") + name_of(ctx.backend));
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
