#pragma once

#include "lapidary/core/context.h"
#include "lapidary/core/parameter.h"

namespace lapidary::nn {

// y = x W^T without bias.   weight [out, in]   x [N, in]   y [N, out]
struct Linear {
  Parameter weight;

  Linear() = default;
  Linear(const std::string& name, int64_t out_features, int64_t in_features)
      : weight{.name = name + ".weight", .shape = {out_features, in_features}} {}

  bool defined() const { return weight.shape.rank() > 0; }
  void forward(Context& ctx, const ConstTensor& x, const Tensor& y) const;

  // dx = dy W (or += with accumulate_dx; nothing when dx is undefined)     weight.grad += dy^T x
  struct BackwardArgs {
    ConstTensor x;
    ConstTensor dy;
    Tensor dx = {};
    bool accumulate_dx = false;
  };
  void backward(Context& ctx, const BackwardArgs& args) const;

  template <class F>
  void visit(F&& f) {
    if (defined()) f(weight);
  }
};

}  // namespace lapidary::nn
