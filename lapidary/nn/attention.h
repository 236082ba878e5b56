#pragma once

#include "lapidary/nn/linear.h"
#include "lapidary/nn/norm.h"
#include "lapidary/nn/recompute.h"
#include "lapidary/ops/mask.h"

namespace lapidary::nn {

// Keys and values as attention reads them: keys normed and rotated, values normed.
//   k, v [B, T, G, D]
struct KeyValues {
  Tensor k, v;
};

// The part of a row that one layer remembers between the steps of a generation: sliding layers the
// last window - 1 tokens, full layers all of them. Older keys may linger; the mask hides them.
class KeyValueCache {
 public:
  KeyValueCache() = default;
  // keep: tokens remembered between steps; capacity: keep plus the largest step.
  KeyValueCache(Backend backend, Dtype dtype, const Shape& bthd, int64_t keep);

  int64_t first() const { return first_; }  // index in the row of the first key held
  // Before a step of `count` tokens: forgets what need not be kept, if room is short.
  void make_room(Context& ctx, int64_t count);
  // Appends k, v [B, S, G, D] and returns all keys held, the new ones included.
  KeyValues append(Context& ctx, const KeyValues& fresh);

 private:
  OwnedTensor k_, v_;
  int64_t keep_ = 0;
  int64_t first_ = 0;
  int64_t length_ = 0;
};

// What all layers of one type share in a forward pass.
struct AttentionPlan {
  ops::MaskSpec mask;
  Tensor cos, sin;  // [B S, D / 2]
};

// Grouped-query attention of Gemma 4: norms on queries and keys per head, rotation, values normed
// without weight, scale 1.   x, y [B S, H]
struct Attention {
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  bool k_eq_v = false;     // value = raw key projection
  bool kv_shared = false;  // keys and values come from another layer
  Linear q_proj, k_proj, v_proj, o_proj;
  RmsNorm q_norm, k_norm;

  struct Options {
    int64_t hidden, num_heads, num_kv_heads, head_dim;
    bool k_eq_v, kv_shared;
    double eps;
  };
  Attention() = default;
  Attention(const std::string& name, const Options& options);

  struct Saved {
    Tensor q_raw, k_raw, v_raw;     // [B S, heads, D]; v_raw is k_raw when k_eq_v
    Tensor q_rstd, k_rstd, v_rstd;  // [B S heads]
    Tensor q, k, v;                 // undefined under `light`; k, v also when the caller owns them
    Tensor o, lse;
  };
  // shared: undefined tensors for a layer whose keys nobody else reads. A source layer fills it (or
  // points it at its cache), a kv_shared layer reads it.
  void forward(Context& ctx, Recompute policy, const AttentionPlan& plan, int64_t rows,
               const ConstTensor& x, const Tensor& y, KeyValues& shared, KeyValueCache* cache,
               Saved& saved) const;

  struct BackwardArgs {
    ConstTensor x;  // input of forward
    ConstTensor dy;
    Tensor dx;           // written
    KeyValues shared;    // as forward left it
    KeyValues d_shared;  // [B, T, G, D] in accumulate_dtype, added to; undefined if not shared
  };
  void backward(Context& ctx, const AttentionPlan& plan, int64_t rows, const BackwardArgs& args,
                const Saved& saved) const;

  template <class F>
  void visit(F&& f) {
    q_proj.visit(f);
    k_proj.visit(f);
    v_proj.visit(f);
    o_proj.visit(f);
    q_norm.visit(f);
    k_norm.visit(f);
  }

 private:
  Tensor heads(const Tensor& t, int64_t rows, int64_t n) const;  // [B S, n D] as [B, S, n, D]
  void project_kv(Context& ctx, const AttentionPlan& plan, const ConstTensor& x, KeyValues kv,
                  Saved& saved) const;
  void normalise_kv(Context& ctx, const AttentionPlan& plan, KeyValues kv,
                    const Saved& saved) const;
  void backward_kv(Context& ctx, const AttentionPlan& plan, const BackwardArgs& args,
                   const KeyValues& d_kv, const Saved& saved) const;
};

}  // namespace lapidary::nn
