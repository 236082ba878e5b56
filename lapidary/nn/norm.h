#pragma once

#include "lapidary/core/context.h"
#include "lapidary/core/parameter.h"

namespace lapidary::nn {

// RMS norm with a plain weight: y = x r w, never (1 + w).   x, y [N, D]
struct RmsNorm {
  Parameter weight;
  double eps = 1e-6;

  RmsNorm() = default;
  RmsNorm(const std::string& name, int64_t dim, double epsilon)
      : weight{.name = name + ".weight", .shape = {dim}, .init = Init::ones}, eps(epsilon) {}

  bool defined() const { return weight.shape.rank() > 0; }

  // y = [residual +] N(x); rstd [N] is written, or undefined in inference.
  struct ForwardArgs {
    ConstTensor x;
    ConstTensor residual = {};
    Tensor y;
    Tensor rstd = {};
  };
  void forward(Context& ctx, const ForwardArgs& args) const;

  // dx = or += ; weight.grad += .
  struct BackwardArgs {
    ConstTensor dy;
    ConstTensor x;
    ConstTensor rstd;
    Tensor dx;
    bool accumulate_dx = false;
  };
  void backward(Context& ctx, const BackwardArgs& args) const;

  // `saved` if forward kept it, else N(x) once more, bit for bit, in scratch memory.
  ConstTensor output(Context& ctx, const ConstTensor& saved, const ConstTensor& x,
                     Dtype dtype) const;

  template <class F>
  void visit(F&& f) {
    if (defined()) f(weight);
  }
};

}  // namespace lapidary::nn
