#pragma once

#include "lapidary/models/gemma4/config.h"
#include "lapidary/nn/attention.h"
#include "lapidary/nn/mlp.h"
#include "lapidary/nn/moe.h"
#include "lapidary/nn/norm.h"

namespace lapidary::gemma4 {

// The residual stream (x, x1, c, x2, x3, y) and its gradient are in the accumulate dtype: f32 in a
// bf16 model, so that adding 2 L branches to it rounds nothing. What enters a product is rounded
// once.
//
// One decoder layer. With N_* the layer's norms, u = x1 the residual after attention:
//   x1 = x + N_post_attention(attention(N_input(x)))
//   c  = mlp(N_pre_feedforward(x1))                                                       dense
//   c  = N_post_feedforward_1(mlp(..)) + N_post_feedforward_2(moe(N_pre_feedforward_2(x1), u))  MoE
//   x2 = x1 + N_post_feedforward(c)
//   x3 = x2 + N_post_per_layer_input((g(x2 W_gate^T) * ple) W_proj^T)   (per-layer embeddings)
//   y  = layer_scalar x3
class Gemma4DecoderLayer {
 public:
  Gemma4DecoderLayer() = default;
  // ep: ranks that share out the experts; null: one.
  Gemma4DecoderLayer(const std::string& name, const TextConfig& config, int64_t index,
                     ProcessGroup* ep = nullptr);

  // What forward reads and writes outside the layer. All of it outlives recomputation.
  struct Io {
    const nn::AttentionPlan* plan = nullptr;
    int64_t rows = 0;                 // B
    ConstTensor x;                    // [T, H] residual stream
    Dtype dtype = Dtype::f32;         // of weights and of what enters products
    ConstTensor ple = {};             // [T, P], this layer's slice
    ConstTensor token_valid = {};     // [T] u8
    nn::KeyValues* shared = nullptr;  // keys and values that more than one layer reads
    nn::KeyValueCache* cache = nullptr;
    nn::Routing* routing = nullptr;
    Tensor expert_loads = {};  // [E] i64, += for the experts of this rank
    Tensor y;                  // [T, H], written
  };
  struct Saved {
    Tensor normed, in_rstd;  // N_input(x); tensors called normed* are undefined under `light`
    nn::Attention::Saved attention;
    Tensor attention_out, post_attention_rstd, x1;
    Tensor normed_mlp, pre_ff_rstd;
    nn::Mlp::Saved mlp;
    Tensor mlp_out, post_ff_1_rstd;
    Tensor normed_moe, pre_ff_2_rstd;
    nn::Gemma4MoE::Saved moe;
    Tensor moe_out, post_ff_2_rstd;
    Tensor c, post_ff_rstd;
    Tensor x2_rounded, ple_gate, ple_gated, ple_out, post_ple_rstd;
  };
  void forward(Context& ctx, nn::Recompute policy, const Io& io, Saved& saved) const;

  struct Gradients {
    ConstTensor dy;
    Tensor dx;                    // [T, H], written
    Tensor dple = {};             // [T, P], written
    nn::KeyValues d_shared = {};  // accumulators of the shared keys and values, +=
  };
  // Consumes `saved`; parameter gradients accumulate.
  void backward(Context& ctx, const Io& io, const Gradients& grads, const Saved& saved) const;

  nn::Gemma4MoE& moe() { return moe_; }
  const nn::Gemma4MoE& moe() const { return moe_; }

  template <class F>
  void visit(F&& f) {
    self_attn_.visit(f);
    mlp_.visit(f);
    moe_.visit(f);
    for (nn::RmsNorm* norm : {&input_layernorm_, &post_attention_layernorm_,
                              &pre_feedforward_layernorm_, &post_feedforward_layernorm_,
                              &post_feedforward_layernorm_1_, &post_feedforward_layernorm_2_,
                              &pre_feedforward_layernorm_2_, &post_per_layer_input_norm_}) {
      norm->visit(f);
    }
    per_layer_input_gate_.visit(f);
    per_layer_projection_.visit(f);
    f(layer_scalar_);
  }

 private:
  void forward_attention(Context& ctx, nn::Recompute policy, const Io& io, Saved& saved) const;
  void forward_feedforward(Context& ctx, nn::Recompute policy, const Io& io, Saved& saved) const;
  void forward_mlp(Context& ctx, nn::Recompute policy, const Io& io, Saved& saved) const;
  void forward_moe(Context& ctx, nn::Recompute policy, const Io& io, Saved& saved) const;
  void forward_ple(Context& ctx, nn::Recompute policy, const Io& io, Saved& saved) const;
  void backward_ple(Context& ctx, const Io& io, const Gradients& grads, const Tensor& dx2,
                    const Saved& saved) const;
  void backward_mlp(Context& ctx, const ConstTensor& dc, const Tensor& d_normed, const Io& io,
                    const Saved& saved) const;
  // d_normed_mlp: if defined, backward_mlp() runs while rows travel.
  void backward_moe(Context& ctx, const ConstTensor& dc, const Tensor& d_normed_mlp,
                    const Tensor& dx1, const Io& io, const Saved& saved) const;
  void backward_feedforward(Context& ctx, const Io& io, const Tensor& dx1,
                            const Saved& saved) const;
  void backward_attention(Context& ctx, const Io& io, const Gradients& grads, const Tensor& dx1,
                          const Saved& saved) const;

  nn::Attention self_attn_;
  nn::Mlp mlp_;
  nn::Gemma4MoE moe_;
  nn::RmsNorm input_layernorm_, post_attention_layernorm_;
  nn::RmsNorm pre_feedforward_layernorm_, post_feedforward_layernorm_;
  nn::RmsNorm post_feedforward_layernorm_1_, post_feedforward_layernorm_2_;
  nn::RmsNorm pre_feedforward_layernorm_2_;
  nn::Linear per_layer_input_gate_, per_layer_projection_;
  nn::RmsNorm post_per_layer_input_norm_;
  Parameter layer_scalar_;
};

}  // namespace lapidary::gemma4
