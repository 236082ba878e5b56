#pragma once

#include "lapidary/core/context.h"
#include "lapidary/core/parameter.h"
#include "lapidary/nn/recompute.h"
#include "lapidary/parallel/ep.h"

namespace lapidary::nn {

// Which expert each token goes to, and where its rows lie in the expert-sorted layout. Owned by the
// caller and kept under every recompute policy: a layer that runs again never routes again. With
// expert parallelism the layout is that of the T' tokens that came to this rank and its E' experts;
// else T' = T and E' = E.
struct Routing {
  Tensor rstd;                   // [T]
  Tensor indices;                // [T, K] i32
  Tensor shares, weights;        // [T, K]
  Tensor counts, offsets;        // [E'], [E' + 1] i32
  Tensor row_token, row_weight;  // [R]
  Tensor pair_row;               // [T', K] i32
  ExpertRoute route;             // with expert parallelism
  bool decided = false;
};

// The router: fp32 on the raw residual; see ops/moe.h for the formula.
struct Gemma4Gate {
  Parameter proj;              // [E, H]
  Parameter scale;             // [H]
  Parameter per_expert_scale;  // [E]
  double eps = 1e-6;

  Gemma4Gate() = default;
  Gemma4Gate(const std::string& name, int64_t experts, int64_t hidden, double epsilon);
  // u [T, H]
  void forward(Context& ctx, const ConstTensor& u, const Routing& routing) const;
  // pair_row [T, K]: where in drow_weight [R] the gradient of each weight is. du [T, H] is added
  // to.
  void backward(Context& ctx, const ConstTensor& u, const Routing& routing,
                const ConstTensor& pair_row, const ConstTensor& drow_weight,
                const Tensor& du) const;
  template <class F>
  void visit(F&& f) {
    f(proj);
    f(scale);
    f(per_expert_scale);
  }
};

// E gated MLPs, one product per expert over the tokens that chose it.
struct GroupedExperts {
  Parameter gate_up_proj;  // [E, 2 I, H], gate rows first
  Parameter down_proj;     // [E, H, I]

  GroupedExperts() = default;
  GroupedExperts(const std::string& name, int64_t experts, int64_t hidden, int64_t intermediate);

  struct Saved {
    Tensor gate_up;  // [R, 2 I]
    Tensor h;        // [R, I], routing weight included; undefined under `light`
  };
  // x, y [T, H]
  void forward(Context& ctx, Recompute policy, const ConstTensor& x, const Routing& routing,
               const Tensor& y, Saved& saved) const;
  // dx [T, H] and drow_weight [R] are written. Consumes saved.gate_up.
  void backward(Context& ctx, const ConstTensor& x, const ConstTensor& dy, const Routing& routing,
                const Tensor& dx, const Tensor& drow_weight, const Saved& saved) const;
  template <class F>
  void visit(F&& f) {
    f(gate_up_proj);
    f(down_proj);
  }
};

// Router and experts together: y = sum_k weight_k expert_k(x), routed by u. With expert parallelism
// the experts' weights are those of this rank, and tokens travel; then forward and backward may be
// begun, other work done, and finished.
struct Gemma4MoE {
  Gemma4Gate gate;
  GroupedExperts experts;
  int64_t top_k = 0;
  ExpertParallel ep;

  Gemma4MoE() = default;
  struct Options {
    int64_t hidden, experts, top_k, intermediate;
    double eps;
    ProcessGroup* ep = nullptr;  // ranks that share out the experts; null: this one has all
  };
  // Parameters are named <layer>.router.* and <layer>.experts.*
  Gemma4MoE(const std::string& layer, const Options& options);

  bool defined() const { return top_k > 0; }
  bool distributed() const { return ep.distributed(); }
  // Memory for the routing of `tokens` tokens, from the activation arena. max_received: of
  // ExpertParallel::max_received(), or the same as tokens.
  Routing alloc_routing(Context& ctx, int64_t tokens, int64_t max_received, Dtype dtype) const;

  struct Saved {
    GroupedExperts::Saved experts;
    Tensor received;  // [T', H], with expert parallelism: the tokens that came
  };
  // What is under way between begin and finish. Its tensors lie in ctx.scratch, in the scope of
  // whoever calls both.
  struct Travel {
    Tensor sent, arrived;  // [S, H], [T', H]
    Pending pending;
  };

  struct ForwardArgs {
    ConstTensor u;                 // [T, H] raw residual, read by the router
    ConstTensor x;                 // [T, H] normed, read by the experts
    ConstTensor token_valid = {};  // [T] u8: tokens with 0 are not dispatched and get y = 0
    Tensor loads = {};             // [E] i64: += tokens per expert of this rank; may be undefined
    Tensor y;                      // [T, H]
  };
  void begin_forward(Context& ctx, const ForwardArgs& args, Routing& routing, Saved& saved,
                     Travel& travel) const;
  void finish_forward(Context& ctx, Recompute policy, const ForwardArgs& args,
                      const Routing& routing, Saved& saved, Travel& travel) const;
  // Both, one after the other.
  void forward(Context& ctx, Recompute policy, const ForwardArgs& args, Routing& routing,
               Saved& saved) const;

  struct BackwardArgs {
    ConstTensor u, x, dy;  // x is not read with expert parallelism
    Tensor dx;             // [T, H] written: gradient of x
    Tensor du;             // [T, H] added to: gradient of u
  };
  void begin_backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                      Travel& travel) const;
  void finish_backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                       const Saved& saved, Travel& travel) const;
  void backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                const Saved& saved) const;

  template <class F>
  void visit(F&& f) {
    if (!defined()) return;
    gate.visit(f);
    experts.visit(f);
  }

 private:
  void sort(Context& ctx, const ForwardArgs& args, Routing& routing) const;
  void backward_here(Context& ctx, const BackwardArgs& args, const Routing& routing,
                     const Saved& saved) const;
  void backward_travelled(Context& ctx, const BackwardArgs& args, const Routing& routing,
                          const Saved& saved, const Travel& travel) const;
};

}  // namespace lapidary::nn
