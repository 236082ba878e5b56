#pragma once

#include "lapidary/nn/linear.h"
#include "lapidary/nn/recompute.h"

namespace lapidary::nn {

// y = (g(x Wg^T) * (x Wu^T)) Wd^T with the tanh form of GELU.   x, y [N, H]   inner [N, F]
struct Mlp {
  Linear gate_proj, up_proj, down_proj;

  Mlp() = default;
  Mlp(const std::string& name, int64_t hidden, int64_t intermediate)
      : gate_proj(name + ".gate_proj", intermediate, hidden),
        up_proj(name + ".up_proj", intermediate, hidden),
        down_proj(name + ".down_proj", hidden, intermediate) {}

  struct Saved {
    Tensor gate, up;  // [N, F]
    Tensor h;         // [N, F]; undefined under `light`
  };
  void forward(Context& ctx, Recompute policy, const ConstTensor& x, const Tensor& y,
               Saved& saved) const;
  // dx is written. Consumes saved.gate and saved.up.
  void backward(Context& ctx, const ConstTensor& x, const ConstTensor& dy, const Tensor& dx,
                const Saved& saved) const;

  template <class F>
  void visit(F&& f) {
    gate_proj.visit(f);
    up_proj.visit(f);
    down_proj.visit(f);
  }
};

}  // namespace lapidary::nn
