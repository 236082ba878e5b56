#include "lapidary/models/gemma4/text_model.h"

#include <cmath>
#include <string>

#include "lapidary/core/transfer.h"
#include "lapidary/ops/elementwise.h"
#include "lapidary/ops/embedding.h"
#include "lapidary/ops/rope.h"

namespace lapidary::gemma4 {
namespace {

// Steps of one token for which a full sliding cache has room: it is moved once in so many steps.
constexpr int64_t kSlack = 64;

constexpr std::array kLayerTypes = {LayerType::sliding_attention, LayerType::full_attention};

size_t index_of(LayerType type) { return static_cast<size_t>(type); }

// Frequencies of one layer type, rounded to f32 as the reference keeps them. The exponent divides
// by the whole head size also where only a part of the pairs rotates.
OwnedTensor inverse_frequencies(const RopeParameters& rope, int64_t head_dim, Backend backend) {
  const int64_t half = head_dim / 2;
  OwnedTensor out(Backend::cpu, Dtype::f64, {half});
  const auto rotated =
      rope.proportional
          ? static_cast<int64_t>(rope.partial_rotary_factor * static_cast<double>(head_dim) / 2.0)
          : half;
  for (int64_t j = 0; j < half; ++j) {
    const double exponent = 2.0 * static_cast<double>(j) / static_cast<double>(head_dim);
    double f = j < rotated ? 1.0 / std::pow(rope.rope_theta, exponent) : 0.0;
    if (rope.proportional) f /= rope.factor;
    out->as<double>()[j] = static_cast<double>(static_cast<float>(f));
  }
  if (on_host(backend)) return out;
  OwnedTensor sent(backend, Dtype::f64, {half});
  Context ctx = Context::make(backend);
  upload(ctx, out.get(), sent.get());
  return sent;
}

double round_to(double value, Dtype dtype) {
  const auto single = static_cast<float>(value);
  return dtype == Dtype::bf16 ? static_cast<double>(static_cast<float>(bf16(single)))
                              : static_cast<double>(single);
}

}  // namespace

GenerationCache::GenerationCache(Backend backend, Dtype dtype, const Config& config, int64_t rows,
                                 int64_t max_tokens, int64_t max_step) {
  layers_.resize(config.text.layers.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerConfig& layer = config.text.layers[i];
    if (layer.kv_shared) continue;
    const bool sliding = layer.type == LayerType::sliding_attention;
    const int64_t keep =
        sliding ? std::min(config.text.sliding_window - 1, max_tokens) : max_tokens;
    const int64_t capacity = std::min(keep + std::max(max_step, kSlack), max_tokens);
    layers_[i] = nn::KeyValueCache(
        backend, dtype, {rows, capacity, layer.num_key_value_heads, layer.head_dim}, keep);
    example_[index_of(layer.type)] = static_cast<int64_t>(i);
  }
}

int64_t GenerationCache::first_key(LayerType type) const {
  const int64_t i = example_[index_of(type)];
  return i < 0 ? 0 : layers_[static_cast<size_t>(i)].first();
}

nn::KeyValueCache* GenerationCache::layer(int64_t i) { return &layers_[static_cast<size_t>(i)]; }

void GenerationCache::begin_step(Context& ctx, int64_t tokens) {
  for (nn::KeyValueCache& layer : layers_) layer.make_room(ctx, tokens);
}

Gemma4TextModel::Gemma4TextModel(const Config& config, Backend backend, ProcessGroup* ep)
    : config_(config) {
  const TextConfig& text = config_.text;
  const std::string prefix = config_.prefix();
  const int64_t hidden = text.hidden_size;
  const Init init = text.pad_token_id ? Init::normal_pad_row_zero : Init::normal;
  embed_tokens_ = {
      .name = prefix + "embed_tokens.weight", .shape = {text.vocab_size, hidden}, .init = init};
  if (has_ple()) {
    const int64_t p = text.hidden_size_per_layer_input;
    embed_tokens_per_layer_ = {.name = prefix + "embed_tokens_per_layer.weight",
                               .shape = {text.vocab_size_per_layer_input, num_layers() * p},
                               .init = init};
    per_layer_model_projection_ =
        nn::Linear(prefix + "per_layer_model_projection", num_layers() * p, hidden);
    per_layer_projection_norm_ =
        nn::RmsNorm(prefix + "per_layer_projection_norm", p, text.rms_norm_eps);
  }
  for (int64_t i = 0; i < num_layers(); ++i) {
    layers_.emplace_back(prefix + "layers." + std::to_string(i), text, i, ep);
  }
  norm_ = nn::RmsNorm(prefix + "norm", hidden, text.rms_norm_eps);
  for (const LayerConfig& layer : text.layers) {
    OwnedTensor& table = inv_freq_[index_of(layer.type)];
    if (table->defined()) continue;
    table = inverse_frequencies(text.rope(layer.type), layer.head_dim, backend);
  }
  if (text.enable_moe_block) {
    expert_loads_ = OwnedTensor(backend, Dtype::i64, {num_layers(), text.num_experts});
  }
  set_dtype(Dtype::f32);
}

void Gemma4TextModel::set_dtype(Dtype dtype) {
  const auto hidden = static_cast<double>(config_.text.hidden_size);
  const auto p = static_cast<double>(config_.text.hidden_size_per_layer_input);
  embed_scale_ = round_to(std::sqrt(hidden), dtype);
  per_layer_embed_scale_ = round_to(std::sqrt(p), dtype);
}

void Gemma4TextModel::reset_expert_loads(Context& ctx) {
  if (expert_loads_->defined()) ops::fill_zero(ctx, expert_loads_.get());
}

// ---- forward -----------------------------------------------------------------------------------

void Gemma4TextModel::embed(Context& ctx, const TextInputs& inputs, Pass& pass) const {
  const int64_t tokens = pass.inputs.rows * pass.inputs.cols;
  const Shape shape{tokens, config_.text.hidden_size};
  const Dtype stream = accumulate_dtype(embed_tokens_.value.dtype());
  const Tensor x0 = ctx.activations.alloc(stream, shape);
  if (pass.inputs.ids.defined()) {
    ops::embedding(
        ctx,
        {.ids = pass.inputs.ids, .table = embed_tokens_.value, .scale = embed_scale_, .y = x0});
  } else {
    ops::axpby(ctx, {.a = on_device(ctx, inputs.inputs_embeds.view(shape)), .out = x0});
  }
  pass.x[0] = x0;
  if (has_ple()) embed_per_layer(ctx, inputs, pass);
}

// ple = 2^-1/2 (N(H^-1/2 x0 W^T) + sqrt(P) table[ids]); columns i P .. (i + 1) P belong to layer i.
void Gemma4TextModel::embed_per_layer(Context& ctx, const TextInputs& inputs, Pass& pass) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t tokens = pass.x[0].dim(0);
  const int64_t p = config_.text.hidden_size_per_layer_input;
  const Shape shape{tokens, num_layers() * p};
  const Shape groups{tokens * num_layers(), p};
  const Dtype dtype = embed_tokens_.value.dtype();
  pass.x0_rounded = ctx.activations.alloc(dtype, pass.x[0].shape());
  ops::axpby(ctx, {.a = pass.x[0], .out = pass.x0_rounded});
  pass.ple = ctx.activations.alloc(dtype, shape);
  pass.ple_projected = ctx.activations.alloc(dtype, shape);
  pass.ple_rstd = ctx.activations.alloc(accumulate_dtype(dtype), {groups[0]});

  Tensor table = ctx.scratch.alloc(dtype, shape);
  if (pass.inputs.ids.defined()) {
    ops::embedding(ctx, {.ids = pass.inputs.ids,
                         .table = embed_tokens_per_layer_.value,
                         .scale = per_layer_embed_scale_,
                         .y = table});
  } else {
    ops::axpby(ctx, {.a = on_device(ctx, inputs.per_layer_inputs.view(shape)), .out = table});
  }
  per_layer_model_projection_.forward(ctx, pass.x0_rounded, pass.ple_projected);
  ops::axpby(ctx, {.a = pass.ple_projected,
                   .alpha = 1.0 / std::sqrt(static_cast<double>(config_.text.hidden_size)),
                   .out = pass.ple_projected});
  per_layer_projection_norm_.forward(
      ctx,
      {.x = pass.ple_projected.view(groups), .y = pass.ple.view(groups), .rstd = pass.ple_rstd});
  const double half = std::sqrt(0.5);
  ops::axpby(ctx, {.a = pass.ple, .b = table, .alpha = half, .beta = half, .out = pass.ple});
}

void Gemma4TextModel::plan_attention(Context& ctx, const Options& options, Pass& pass) const {
  const int64_t offset = options.cache != nullptr ? options.cache->length() : 0;
  const Dtype acc = accumulate_dtype(embed_tokens_.value.dtype());
  for (const LayerType type : kLayerTypes) {
    if (!config_.text.has_layer_type(type)) continue;
    nn::AttentionPlan& plan = pass.plans[index_of(type)];
    const int64_t first = options.cache != nullptr ? options.cache->first_key(type) : 0;
    plan.mask = mask_of(config_, pass.inputs, type, options.image_rule, offset, first);
    const Tensor& inv_freq = inv_freq_[index_of(type)].get();
    const Shape shape{pass.inputs.positions.dim(0), inv_freq.dim(0)};
    plan.cos = ctx.activations.alloc(acc, shape);
    plan.sin = ctx.activations.alloc(acc, shape);
    ops::rope_table(ctx, {.positions = pass.inputs.positions,
                          .inv_freq = inv_freq,
                          .cos = plan.cos,
                          .sin = plan.sin});
  }
}

Gemma4DecoderLayer::Io Gemma4TextModel::io_of(int64_t i, GenerationCache* cache, Pass& pass) const {
  const auto index = static_cast<size_t>(i);
  const LayerConfig& layer = config_.text.layers[index];
  const int64_t p = config_.text.hidden_size_per_layer_input;
  Gemma4DecoderLayer::Io io{.plan = &pass.plans[index_of(layer.type)],
                            .rows = pass.inputs.rows,
                            .x = pass.x[index],
                            .dtype = embed_tokens_.value.dtype(),
                            .token_valid = pass.inputs.token_valid,
                            .y = pass.x[index + 1]};
  if (has_ple()) io.ple = pass.ple.slice(1, i * p, p);
  if (layer.kv_shared || layer.kv_is_source) io.shared = &pass.shared[index_of(layer.type)];
  if (cache != nullptr && !layer.kv_shared) io.cache = cache->layer(i);
  if (config_.text.enable_moe_block) {
    io.routing = &pass.routing[index];
    io.expert_loads = expert_loads_->slice(0, i, 1).view({config_.text.num_experts});
  }
  return io;
}

void Gemma4TextModel::forward_layer(Context& ctx, const Options& options, int64_t i,
                                    Pass& pass) const {
  const auto index = static_cast<size_t>(i);
  const LayerConfig& layer = config_.text.layers[index];
  const Tensor& x = pass.x[index];
  const Dtype dtype = embed_tokens_.value.dtype();
  // What outlives recomputation lies below the mark.
  pass.x[index + 1] = ctx.activations.alloc(x.dtype(), x.shape());
  if (config_.text.enable_moe_block) {
    pass.routing[index] = layers_[index].moe().alloc_routing(ctx, x.dim(0), dtype);
  }
  if (layer.kv_is_source && options.cache == nullptr) {
    const Shape shape{pass.inputs.rows, pass.inputs.cols, layer.num_key_value_heads,
                      layer.head_dim};
    pass.shared[index_of(layer.type)] = {ctx.activations.alloc(dtype, shape),
                                         ctx.activations.alloc(dtype, shape)};
  }
  const int64_t mark = ctx.activations.mark();
  layers_[index].forward(ctx, options.policy, io_of(i, options.cache, pass), pass.saved[index]);
  if (options.policy == nn::Recompute::block) ctx.activations.rewind(mark);
}

Tensor Gemma4TextModel::forward(Context& ctx, const TextInputs& inputs, const Options& options,
                                Pass& pass) const {
  const auto layers = static_cast<size_t>(num_layers());
  pass.policy = options.policy;
  pass.x.resize(layers + 1);
  pass.routing.resize(layers);
  pass.saved.resize(layers);
  if (options.cache != nullptr) options.cache->begin_step(ctx, inputs.cols());
  const int64_t offset = options.cache != nullptr ? options.cache->length() : 0;
  pass.inputs = prepare_inputs(ctx, config_, inputs, offset);
  plan_attention(ctx, options, pass);
  embed(ctx, inputs, pass);
  for (int64_t i = 0; i < num_layers(); ++i) {
    if (options.before_layer) options.before_layer(i);
    forward_layer(ctx, options, i, pass);
  }
  if (options.cache != nullptr) options.cache->end_step(pass.inputs.cols);

  const Tensor& last = pass.x[layers];
  pass.hidden = ctx.activations.alloc(embed_tokens_.value.dtype(), last.shape());
  pass.final_rstd = ctx.activations.alloc(last.dtype(), {last.dim(0)});
  norm_.forward(ctx, {.x = last, .y = pass.hidden, .rstd = pass.final_rstd});
  return pass.hidden;
}

// ---- backward ----------------------------------------------------------------------------------

void Gemma4TextModel::backward(Context& ctx, const ConstTensor& d_hidden, Pass& pass,
                               const LayerHooks& hooks) const {
  const auto layers = static_cast<size_t>(num_layers());
  const int64_t p = config_.text.hidden_size_per_layer_input;
  const Tensor& last = pass.x[layers];
  Arena& arena = ctx.activations;
  Tensor dy = arena.alloc(last.dtype(), last.shape());
  Tensor dx = arena.alloc(last.dtype(), last.shape());
  Tensor dple;
  if (has_ple()) dple = arena.alloc(pass.ple.dtype(), pass.ple.shape());
  // One accumulator per layer type: consumers add, the source drains it, last of all.
  std::array<nn::KeyValues, 2> d_shared;
  for (const LayerType type : kLayerTypes) {
    const nn::KeyValues& kv = pass.shared[index_of(type)];
    if (!kv.k.defined()) continue;
    const Dtype acc = accumulate_dtype(kv.k.dtype());
    d_shared[index_of(type)] = {arena.alloc(acc, kv.k.shape()), arena.alloc(acc, kv.v.shape())};
    ops::fill_zero(ctx, d_shared[index_of(type)].k);
    ops::fill_zero(ctx, d_shared[index_of(type)].v);
  }

  norm_.backward(ctx, {.dy = d_hidden, .x = last, .rstd = pass.final_rstd, .dx = dy});
  for (int64_t i = num_layers() - 1; i >= 0; --i) {
    const auto index = static_cast<size_t>(i);
    const LayerConfig& layer = config_.text.layers[index];
    const Gemma4DecoderLayer::Io io = io_of(i, nullptr, pass);
    const ArenaScope scope(arena);
    if (hooks.before) hooks.before(i);
    if (pass.policy == nn::Recompute::block) {
      // The output of the layer is no longer read: a spare place keeps x[i + 1] of the caller
      // intact.
      Gemma4DecoderLayer::Io again = io;
      again.y = arena.alloc(dx.dtype(), dx.shape());
      layers_[index].forward(ctx, pass.policy, again, pass.saved[index]);
    }
    Gemma4DecoderLayer::Gradients grads{.dy = dy, .dx = dx};
    if (has_ple()) grads.dple = dple.slice(1, i * p, p);
    if (layer.kv_shared || layer.kv_is_source) grads.d_shared = d_shared[index_of(layer.type)];
    layers_[index].backward(ctx, io, grads, pass.saved[index]);
    if (hooks.after) hooks.after(i);
    std::swap(dy, dx);
  }
  backward_embeddings(ctx, dy, dple, pass);
  pass.d_inputs = dy;
}

void Gemma4TextModel::backward_embeddings(Context& ctx, const Tensor& dx, const Tensor& dple,
                                          Pass& pass) const {
  const ArenaScope scope(ctx.scratch);
  if (has_ple()) {
    const Shape groups{pass.ple_rstd.dim(0), config_.text.hidden_size_per_layer_input};
    const double half = std::sqrt(0.5);
    ops::axpby(ctx, {.a = dple, .alpha = half, .out = dple});
    if (embed_tokens_per_layer_.grad.defined() && pass.inputs.ids.defined()) {
      ops::embedding_bwd(ctx, {.ids = pass.inputs.grad_ids,
                               .dy = dple,
                               .scale = per_layer_embed_scale_,
                               .dtable = embed_tokens_per_layer_.grad});
    }
    per_layer_projection_norm_.backward(ctx, {.dy = dple.view(groups),
                                              .x = pass.ple_projected.view(groups),
                                              .rstd = pass.ple_rstd,
                                              .dx = dple.view(groups)});
    ops::axpby(ctx, {.a = dple,
                     .alpha = 1.0 / std::sqrt(static_cast<double>(config_.text.hidden_size)),
                     .out = dple});
    per_layer_model_projection_.backward(
        ctx, {.x = pass.x0_rounded, .dy = dple, .dx = dx, .accumulate_dx = true});
  }
  if (embed_tokens_.grad.defined() && pass.inputs.ids.defined()) {
    ops::embedding_bwd(ctx, {.ids = pass.inputs.grad_ids,
                             .dy = dx,
                             .scale = embed_scale_,
                             .dtable = embed_tokens_.grad});
  }
}

}  // namespace lapidary::gemma4
