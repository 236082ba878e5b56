#pragma once

#include <array>
#include <functional>
#include <vector>

#include "lapidary/models/gemma4/text_block.h"
#include "lapidary/models/gemma4/text_inputs.h"

namespace lapidary::gemma4 {

// The keys and values that a generation remembers, for all layers that own some.
class GenerationCache {
 public:
  GenerationCache() = default;
  // rows: sequences; max_tokens: prompt and new tokens together; max_step: the longest single step.
  GenerationCache(Backend backend, Dtype dtype, const Config& config, int64_t rows,
                  int64_t max_tokens, int64_t max_step);
  int64_t length() const { return length_; }  // tokens seen
  // Index of the first key that layers of this type still hold.
  int64_t first_key(LayerType type) const;
  nn::KeyValueCache* layer(int64_t i);
  void begin_step(Context& ctx, int64_t tokens);
  void end_step(int64_t tokens) { length_ += tokens; }

 private:
  std::vector<nn::KeyValueCache> layers_;      // one per layer, empty for sharing layers
  std::array<int64_t, 2> example_ = {-1, -1};  // per LayerType: a layer that owns keys
  int64_t length_ = 0;
};

// Embedding, per-layer embeddings, the decoder layers and the final norm.
class Gemma4TextModel {
 public:
  // ep: the ranks that share out the experts; null: this one has all.
  Gemma4TextModel(const Config& config, Backend backend, ProcessGroup* ep = nullptr);

  // Everything a forward pass leaves for its backward; tensors live in the activation arena until
  // the caller rewinds it. Reused from step to step, so that a step allocates nothing.
  struct Pass {
    PreparedInputs inputs;
    nn::Recompute policy = nn::Recompute::none;
    std::array<nn::AttentionPlan, 2> plans;  // per LayerType
    std::vector<Tensor> x;  // hidden_states: x[i] is the input of layer i, in accumulate_dtype
    Tensor x0_rounded;      // x[0] as it enters per_layer_model_projection
    Tensor ple, ple_projected, ple_rstd;  // [T, L P]
    std::vector<nn::Routing> routing;
    std::array<nn::KeyValues, 2> shared;  // per LayerType
    std::vector<Gemma4DecoderLayer::Saved> saved;
    Tensor final_rstd, hidden;  // hidden = N(x[L]), [T, H]
    Tensor d_inputs;            // backward leaves the gradient of x[0] here
  };
  struct Options {
    nn::Recompute policy = nn::Recompute::none;
    ops::ImageRule image_rule = ops::ImageRule::google;
    GenerationCache* cache = nullptr;
    std::function<void(int64_t layer)> before_layer = {};  // its weights are about to be read
  };

  // Returns the last hidden state, after the final norm: [T, H], T = rows * cols.
  Tensor forward(Context& ctx, const TextInputs& inputs, const Options& options, Pass& pass) const;
  // What the caller does around the backward of layer i (recomputation included), which runs from
  // the last layer to the first: see LossOptions::on_gradients.
  struct LayerHooks {
    std::function<void(int64_t layer)> before, after;
  };
  // From the gradient of the last hidden state to all parameter gradients (+=).
  void backward(Context& ctx, const ConstTensor& d_hidden, Pass& pass,
                const LayerHooks& hooks = {}) const;

  const Config& config() const { return config_; }
  const Parameter& embed_tokens() const { return embed_tokens_; }
  // Tokens per expert since the last call of reset_expert_loads(): [layers, experts] i64 in the
  // memory of the backend; undefined without experts.
  ConstTensor expert_loads() const { return expert_loads_.get(); }
  void reset_expert_loads(Context& ctx);

  template <class F>
  void visit(F&& f) {
    f(embed_tokens_);
    if (has_ple()) {
      f(embed_tokens_per_layer_);
      per_layer_model_projection_.visit(f);
      per_layer_projection_norm_.visit(f);
    }
    for (Gemma4DecoderLayer& layer : layers_) layer.visit(f);
    norm_.visit(f);
  }
  template <class F>
  void visit_layer(int64_t i, F&& f) {
    layers_[static_cast<size_t>(i)].visit(f);
  }
  // Rounds the embedding scales to the dtype of the weights, as the reference does.
  void set_dtype(Dtype dtype);

 private:
  bool has_ple() const { return config_.text.hidden_size_per_layer_input > 0; }
  int64_t num_layers() const { return config_.text.num_hidden_layers; }
  void embed(Context& ctx, const TextInputs& inputs, Pass& pass) const;
  void embed_per_layer(Context& ctx, const TextInputs& inputs, Pass& pass) const;
  void plan_attention(Context& ctx, const Options& options, Pass& pass) const;
  void forward_layer(Context& ctx, const Options& options, int64_t i, Pass& pass) const;
  Gemma4DecoderLayer::Io io_of(int64_t i, GenerationCache* cache, Pass& pass) const;
  void backward_embeddings(Context& ctx, const Tensor& dx, const Tensor& dple, Pass& pass) const;

  Config config_;
  Parameter embed_tokens_;
  Parameter embed_tokens_per_layer_;
  nn::Linear per_layer_model_projection_;
  nn::RmsNorm per_layer_projection_norm_;
  std::vector<Gemma4DecoderLayer> layers_;
  nn::RmsNorm norm_;
  double embed_scale_ = 1.0;
  double per_layer_embed_scale_ = 1.0;
  std::array<OwnedTensor, 2> inv_freq_;  // per LayerType
  OwnedTensor expert_loads_;
};

}  // namespace lapidary::gemma4
