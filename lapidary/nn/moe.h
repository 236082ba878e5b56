#pragma once

#include "lapidary/core/context.h"
#include "lapidary/core/parameter.h"
#include "lapidary/nn/recompute.h"
#include "lapidary/parallel/ep.h"

namespace lapidary::nn {

// Which expert each token goes to, and where its rows lie in the expert-sorted layout. Owned by the
// caller and kept under every recompute policy: a layer that runs again never routes again.
// T tokens of this rank; T' tokens that its experts see, those of all ranks that chose one of them
// (T' = T on one rank); E' experts of this rank.
struct Routing {
  Tensor rstd;                             // [T]
  Tensor indices;                          // [T, K] i32
  Tensor shares, weights;                  // [T, K]
  Tensor counts, offsets;                  // [E'], [E' + 1] i32
  Tensor row_token = {}, row_weight = {};  // [R]
  Tensor pair_row = {};                    // [T', K] i32
  Tensor weight_row = {};          // [T, K] i32: where a pair's gradient of its weight is found
  ExpertParallel::Plan plan = {};  // on several ranks
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
  // drow_weight: gradients of the weights, in the places of routing.weight_row. du [T, H] is added
  // to.
  void backward(Context& ctx, const ConstTensor& u, const Routing& routing,
                const ConstTensor& drow_weight, const Tensor& du) const;
  template <class F>
  void visit(F&& f) {
    f(proj);
    f(scale);
    f(per_expert_scale);
  }
};

// E gated MLPs, one product per expert over the tokens that chose it. Values and gradients of the
// parameters hold the E' experts of this rank.
struct GroupedExperts {
  Parameter gate_up_proj;  // [E, 2 I, H], gate rows first
  Parameter down_proj;     // [E, H, I]

  GroupedExperts() = default;
  GroupedExperts(const std::string& name, int64_t experts, int64_t hidden, int64_t intermediate);

  struct Saved {
    Tensor gate_up;  // [R, 2 I]
    Tensor h;        // [R, I], routing weight included; undefined under `light`
  };
  // x, y [T', H]
  void forward(Context& ctx, Recompute policy, const ConstTensor& x, const Routing& routing,
               const Tensor& y, Saved& saved) const;
  // dx [T', H] and drow_weight [R] are written; dx may be dy. Consumes saved.gate_up.
  void backward(Context& ctx, const ConstTensor& x, const ConstTensor& dy, const Routing& routing,
                const Tensor& dx, const Tensor& drow_weight, const Saved& saved) const;
  template <class F>
  void visit(F&& f) {
    f(gate_up_proj);
    f(down_proj);
  }
};

// Router and experts together: y = sum_k weight_k expert_k(x), routed by u. The experts may be
// dealt to several ranks, see parallel/ep.h: then rows of x travel there and sums over the experts
// of a rank travel back, and gradients the same ways. What lies between begin and finish of a pass
// overlaps the first journey. On one rank begin does little, finish the rest.
struct Gemma4MoE {
  Gemma4Gate gate;
  GroupedExperts experts;
  ExpertParallel parallel;
  int64_t top_k = 0;

  Gemma4MoE() = default;
  struct Options {
    int64_t hidden, experts, top_k, intermediate;
    double eps;
    ProcessGroup* ep = nullptr;  // ranks that share out the experts; null: one
  };
  // Parameters are named <layer>.router.* and <layer>.experts.*
  Gemma4MoE(const std::string& layer, const Options& options);

  bool defined() const { return top_k > 0; }
  // Memory for the routing of `tokens` tokens, from the activation arena. Ranks that share out the
  // experts call this, forward and backward together, also without tokens.
  Routing alloc_routing(Context& ctx, int64_t tokens, Dtype dtype) const;

  struct Saved {
    Tensor x;  // [T', H] received rows; undefined on one rank. `light` keeps them too: moving them
               // again would take longer than they are worth.
    GroupedExperts::Saved experts;
  };
  // Rows on their way between begin and finish. Their memory is ctx.scratch: the caller's scope
  // encloses both.
  struct Journey {
    Tensor sent;  // [rows sent, H]
    Tensor rows;  // [T', H] what arrives
    Pending pending;
  };

  struct ForwardArgs {
    ConstTensor u;                 // [T, H] raw residual, read by the router
    ConstTensor x;                 // [T, H] normed, read by the experts
    ConstTensor token_valid = {};  // [T] u8: tokens with 0 are not dispatched and get y = 0
    Tensor loads = {};  // [E] i64: += tokens per expert of this rank, from all ranks; or undefined
    Tensor y;           // [T, H]
  };
  [[nodiscard]] Journey begin_forward(Context& ctx, const ForwardArgs& args, Routing& routing,
                                      Saved& saved) const;
  void finish_forward(Context& ctx, Recompute policy, const ForwardArgs& args,
                      const Routing& routing, Journey journey, Saved& saved) const;
  void forward(Context& ctx, Recompute policy, const ForwardArgs& args, Routing& routing,
               Saved& saved) const;

  struct BackwardArgs {
    ConstTensor u, x, dy;  // x: not read when tokens travel
    Tensor dx;             // [T, H] written: gradient of x
    Tensor du;             // [T, H] added to: gradient of u
  };
  [[nodiscard]] Journey begin_backward(Context& ctx, const ConstTensor& dy,
                                       const Routing& routing) const;
  void finish_backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                       Journey journey, const Saved& saved) const;
  void backward(Context& ctx, const BackwardArgs& args, const Routing& routing,
                const Saved& saved) const;

  template <class F>
  void visit(F&& f) {
    if (!defined()) return;
    gate.visit(f);
    experts.visit(f);
  }

 private:
  void decide(Context& ctx, const ForwardArgs& args, Routing& routing) const;
  void sort(Context& ctx, const ForwardArgs& args, Routing& routing) const;
  // [T, K]: gradients of this rank's routing weights out of those of the rows, [R].
  void return_weights(Context& ctx, const Routing& routing, const ConstTensor& drow_weight,
                      const Tensor& dweights) const;
};

}  // namespace lapidary::nn
