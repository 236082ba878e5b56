#include "lapidary/models/gemma4/conditional_generation.h"

#include <complex>
#include <numeric>
#include <set>

#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"
#include "lapidary/core/transfer.h"
#include "lapidary/ops/elementwise.h"
#include "lapidary/ops/loss.h"
#include "lapidary/ops/matmul.h"
#include "lapidary/ops/random.h"

namespace lapidary::gemma4 {
namespace {

// On the host.
OwnedTensor copy_of(Context& ctx, const ConstTensor& t, const Shape& shape) {
  OwnedTensor out(Backend::cpu, t.dtype(), shape);
  download(ctx, t, out->view(t.shape()));
  return out;
}

bool has_gradient(const Parameter& p) { return p.trainable && !p.buffer; }

}  // namespace

Gemma4ForConditionalGeneration::Gemma4ForConditionalGeneration(const Config& config,
                                                               const ModelOptions& options)
    : options_(options), text_(std::make_unique<Gemma4TextModel>(config, options.backend)) {
  if (options.groups == nullptr) alone_ = std::make_unique<MeshGroups>();
  groups_ = options.groups == nullptr ? alone_.get() : options.groups;
  const Mesh::Dense& dense = groups_->mesh().sizes();
  Problems problems;
  for (const MeshProblem& found :
       check_parallel(config, {.tp_size = dense.tp,
                              .cp_size = dense.cp,
                              .pp_size = dense.pp,
                              .ep_size = groups_->mesh().sparse_sizes().ep})) {
    problems.add("distributed." + found.axis, found.what, found.fix);
  }
  problems.throw_if_any("model");
  const bool reference = options.dtype == Dtype::f64 || options.dtype == Dtype::c128;
  const bool meta = options.backend == Backend::meta;
  if (!meta && reference != (options.backend == Backend::ref)) {
    fail("model", std::string("dtype ") + name_of(options.dtype) + " does not run on backend " +
                      name_of(options.backend));
  }
  if (!config.tie_word_embeddings) {
    lm_head_ = {.name = "lm_head.weight",
                .shape = {config.text.vocab_size, config.text.hidden_size}};
  }
  text_->set_dtype(options.dtype);
  for_each_parameter([&](Parameter& p) {
    values_.emplace_back(options.backend, options.dtype, p.shape);
    p.value = values_.back().get();
  });
}

Gemma4ForConditionalGeneration Gemma4ForConditionalGeneration::from_config(
    const Config& config, const ModelOptions& options) {
  Gemma4ForConditionalGeneration model(config, options);
  if (options.backend != Backend::meta) model.initialize_weights(options.seed);
  return model;
}

Capabilities Gemma4ForConditionalGeneration::get_capabilities(const Config& config) {
  const TextConfig& text = config.text;
  Capabilities can;
  can.cp = true;
  can.ep = text.enable_moe_block;
  can.max_ep = can.ep ? text.num_experts : 1;
  if (!can.ep) can.why_no_ep = "the model has no experts";
  can.pp = !text.enable_moe_block && text.hidden_size_per_layer_input == 0 &&
           text.num_kv_shared_layers == 0;
  if (!can.pp) {
    can.why_no_pp = text.enable_moe_block ? "the model has experts"
                                          : "layers share keys, values or per-layer embeddings";
  }
  for (const LayerConfig& layer : text.layers) {
    const int64_t heads = std::gcd(text.num_attention_heads, layer.num_key_value_heads);
    can.max_tp =
        can.max_tp == 1 && &layer == &text.layers.front() ? heads : std::gcd(can.max_tp, heads);
  }
  if (text.enable_moe_block) {
    can.max_tp = 1;
    can.why_no_tp = "the model has experts; use ep";
  } else if (can.max_tp == 1) {
    can.why_no_tp = "a layer has one key/value head";
  }
  can.tp = can.max_tp > 1;
  return can;
}

std::vector<MeshProblem> Gemma4ForConditionalGeneration::check_parallel(const Config& config,
                                                                        const MeshOptions& sizes) {
  const Capabilities can = get_capabilities(config);
  std::vector<MeshProblem> found;
  const auto add = [&](const char* name, int64_t size, const std::string& what,
                       const std::string& fix) {
    found.push_back({name, std::to_string(size) + " " + what, fix});
  };
  const auto unbuilt = [&](const char* name, int64_t size, bool supported, const std::string& why) {
    if (size <= 1) return;
    add(name, size, supported ? "is not in this version" : "is not supported by this model: " + why,
        "use 1");
  };
  unbuilt("tp_size", sizes.tp_size, can.tp, can.why_no_tp);
  if (can.tp && sizes.tp_size > 1 && can.max_tp % sizes.tp_size != 0) {
    add("tp_size", sizes.tp_size, "does not divide the key/value heads of every layer",
        "use a divisor of " + std::to_string(can.max_tp));
  }
  unbuilt("cp_size", sizes.cp_size, can.cp, "");
  unbuilt("pp_size", sizes.pp_size, can.pp, can.why_no_pp);
  if (!can.ep && sizes.ep_size > 1) {
    add("ep_size", sizes.ep_size, "is not supported by this model: " + can.why_no_ep, "use 1");
  } else if (sizes.ep_size > can.max_ep) {
    add("ep_size", sizes.ep_size, "is more than the model has experts",
        "use at most " + std::to_string(can.max_ep));
  }
  return found;
}

void Gemma4ForConditionalGeneration::initialize_weights(uint64_t seed) {
  for_each_parameter([&](Parameter& p) { initialize_parameter(p, seed); });
}

void Gemma4ForConditionalGeneration::initialize_parameter(Parameter& p, uint64_t seed) {
  const TextConfig& text = config().text;
  Context ctx = Context::make(options_.backend);
  const bool ones = p.init == Init::ones;
  ops::fill_normal(ctx, {.t = p.value,
                         .mean = ones ? 1.0 : 0.0,
                         .deviation = ones ? 0.0 : text.initializer_range,
                         .seed = seed,
                         .stream = stream_of(p.name.c_str())});
  if (p.init == Init::normal_pad_row_zero) {
    ops::fill_zero(ctx, p.value.slice(0, *text.pad_token_id, 1));
  }
}

void Gemma4ForConditionalGeneration::for_each_parameter(const std::function<void(Parameter&)>& f) {
  text_->visit(f);
  if (lm_head_.shape.rank() > 0) f(lm_head_);
}

Parameter& Gemma4ForConditionalGeneration::parameter(const std::string& name) {
  Parameter* found = nullptr;
  for_each_parameter([&](Parameter& p) {
    if (p.name == name) found = &p;
  });
  if (found == nullptr) fail("model", "there is no parameter \"" + name + "\"");
  return *found;
}

std::vector<Parameter*> Gemma4ForConditionalGeneration::optimizer_parameters() {
  std::vector<Parameter*> out;
  for_each_parameter([&](Parameter& p) { out.push_back(&p); });
  return out;
}

void Gemma4ForConditionalGeneration::zero_gradients(GradientBuffers buffers) {
  Context ctx = Context::make(options_.backend);
  zero_gradients(ctx, buffers);
}

void Gemma4ForConditionalGeneration::zero_gradients(Context& ctx, GradientBuffers buffers) {
  for (const OwnedTensor& gradient : gradients_) ops::fill_zero(ctx, gradient.get());
  allocate_gradients(buffers);
}

std::vector<Parameter*> Gemma4ForConditionalGeneration::layer_parameters(int64_t layer) {
  std::vector<Parameter*> out;
  text_->visit_layer(layer, [&](Parameter& p) {
    if (has_gradient(p)) out.push_back(&p);
  });
  return out;
}

std::vector<Parameter*> Gemma4ForConditionalGeneration::other_parameters() {
  std::set<const Parameter*> of_layers;
  for (int64_t i = 0; i < config().text.num_hidden_layers; ++i) {
    text_->visit_layer(i, [&](Parameter& p) { of_layers.insert(&p); });
  }
  std::vector<Parameter*> out;
  for_each_parameter([&](Parameter& p) {
    if (has_gradient(p) && !of_layers.contains(&p)) out.push_back(&p);
  });
  return out;
}

void Gemma4ForConditionalGeneration::allocate_gradients(GradientBuffers buffers) {
  const Dtype acc = accumulate_dtype(options_.dtype);
  const auto own = [&](Parameter& p) {
    if (!has_gradient(p) || p.grad.defined()) return;
    gradients_.emplace_back(options_.backend, acc, p.shape);
    p.grad = gradients_.back().get();
  };
  const bool decided = layer_gradients_->defined() || !gradients_.empty();
  if (buffers == GradientBuffers::whole || decided) {
    return for_each_parameter(own);
  }
  constexpr int64_t kSpacing = 64;  // elements: every gradient starts on a whole cache line
  const auto room = [](const Parameter& p) {
    return (p.shape.numel() + kSpacing - 1) / kSpacing * kSpacing;
  };
  int64_t largest = 0;
  for (int64_t i = 0; i < config().text.num_hidden_layers; ++i) {
    int64_t sum = 0;
    for (const Parameter* p : layer_parameters(i)) sum += room(*p);
    largest = std::max(largest, sum);
  }
  layer_gradients_ = OwnedTensor(options_.backend, acc, {largest});
  for (int64_t i = 0; i < config().text.num_hidden_layers; ++i) {
    int64_t at = 0;
    for (Parameter* p : layer_parameters(i)) {
      p->grad = layer_gradients_->slice(0, at, p->shape.numel()).view(p->shape);
      at += room(*p);
    }
  }
  for (Parameter* p : other_parameters()) own(*p);
}

int64_t Gemma4ForConditionalGeneration::gradient_bytes() const {
  int64_t bytes = layer_gradients_->bytes();
  for (const OwnedTensor& gradient : gradients_) bytes += gradient->bytes();
  return bytes;
}

Gemma4TextModel::LayerHooks Gemma4ForConditionalGeneration::layer_hooks(
    Context& ctx, const LossOptions& options) {
  Gemma4TextModel::LayerHooks hooks;
  if (layer_gradients_->defined()) {
    hooks.before = [this, &ctx](int64_t) { ops::fill_zero(ctx, layer_gradients_.get()); };
  }
  if (options.on_gradients) {
    hooks.after = [this, &ctx, &options](int64_t i) {
      options.on_gradients(ctx, layer_parameters(i));
    };
  }
  return hooks;
}

const Parameter& Gemma4ForConditionalGeneration::head() const {
  return config().tie_word_embeddings ? text_->embed_tokens() : lm_head_;
}

void Gemma4ForConditionalGeneration::head_logits(Context& ctx, const ConstTensor& hidden,
                                                 const Tensor& logits) const {
  const auto compute = [&](const ConstTensor& rows, const Tensor& out) {
    ops::matmul(ctx, {.a = rows, .b = head().value, .out = out, .trans_b = true});
    ops::softcap(ctx, {.logits = out, .softcap = config().text.final_logit_softcapping});
  };
  if (on_host(ctx.target)) return compute(hidden, logits);
  constexpr int64_t kRows = 256;
  for (int64_t first = 0; first < hidden.dim(0); first += kRows) {
    const ArenaScope scope(ctx.scratch);
    const int64_t count = std::min(kRows, hidden.dim(0) - first);
    const Tensor part = ctx.scratch.alloc(logits.dtype(), {count, logits.dim(1)});
    compute(hidden.slice(0, first, count), part);
    download(ctx, part, logits.slice(0, first, count));
  }
}

ForwardOutput Gemma4ForConditionalGeneration::forward(Context& ctx, const TextInputs& inputs,
                                                      const ForwardOptions& options) {
  const ArenaScope scope(ctx.activations);
  const ArenaScope staging(ctx.staging);
  const bool meta = ctx.backend == Backend::meta;
  const int64_t rows = inputs.rows();
  const int64_t cols = inputs.cols();
  const int64_t width = config().text.hidden_size;
  const Tensor hidden = text_->forward(
      ctx, inputs, {.policy = nn::Recompute::block, .image_rule = options.image_rule}, pass_);

  ForwardOutput out;
  if (!meta) out.last_hidden_state = copy_of(ctx, hidden, {rows, cols, width});
  for (const Tensor& x : pass_.x) {
    if (options.output_hidden_states && !meta) {
      const bool last = &x == &pass_.x.back();
      out.hidden_states.push_back(copy_of(ctx, last ? hidden : x, {rows, cols, width}));
    }
  }
  std::vector<int64_t> positions = options.logits_positions;
  if (options.logits_to_keep < 0) {
    fail("forward", "logits_to_keep is " + std::to_string(options.logits_to_keep),
         "use 0 for all positions");
  }
  if (positions.empty()) {
    const int64_t kept =
        options.logits_to_keep == 0 ? cols : std::min(cols, options.logits_to_keep);
    positions.resize(static_cast<size_t>(kept));
    std::iota(positions.begin(), positions.end(), cols - kept);
  }
  const auto kept = static_cast<int64_t>(positions.size());
  out.logits = OwnedTensor(meta ? Backend::meta : Backend::cpu, accumulate_dtype(dtype()),
                           {rows, kept, config().text.vocab_size});
  const Tensor by_position = hidden.view({rows, cols, width});
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t n = 0; n < kept;) {  // runs of neighbouring positions in one product
      int64_t run = 1;
      const int64_t start = positions[static_cast<size_t>(n)];
      while (n + run < kept && positions[static_cast<size_t>(n + run)] == start + run) ++run;
      if (start < 0 || start + run > cols) {
        fail("forward", "logits position " + std::to_string(start + run - 1) + " of a row of " +
                            std::to_string(cols));
      }
      head_logits(ctx, by_position.slice(0, b, 1).slice(1, start, run).rows(),
                  out.logits->slice(0, b, 1).slice(1, n, run).rows());
      n += run;
    }
  }
  return out;
}

ConstTensor Gemma4ForConditionalGeneration::shifted_targets(Context& ctx,
                                                            const ConstTensor& labels) const {
  const int64_t cols = labels.dim(1);
  const Tensor targets = host_tensor(ctx, Dtype::i64, {labels.numel()});
  if (ctx.backend == Backend::meta) return on_device(ctx, targets);
  const int64_t vocabulary = config().text.vocab_size;
  for (int64_t t = 0; t < labels.numel(); ++t) {
    const int64_t label = labels.as<int64_t>()[t];
    if (label != -100 && (label < 0 || label >= vocabulary)) {
      fail("labels",
           "label " + std::to_string(label) + " at row " + std::to_string(t / cols) +
               ", position " + std::to_string(t % cols) + " is outside the vocabulary of " +
               std::to_string(vocabulary),
           "use -100 for tokens that do not count");
    }
    const bool last = t % cols == cols - 1;
    targets.as<int64_t>()[t] = last ? -100 : labels.as<int64_t>()[t + 1];
  }
  return on_device(ctx, targets);
}

double Gemma4ForConditionalGeneration::loss(Context& ctx, const TextInputs& inputs,
                                            const ConstTensor& labels, const LossOptions& options) {
  const ArenaScope scope(ctx.activations);
  const ArenaScope staging(ctx.staging);
  const Tensor sum = ctx.activations.alloc(dtype() == Dtype::c128 ? Dtype::c128 : Dtype::f64, {1});
  ops::fill_zero(ctx, sum);
  add_loss(ctx, inputs, labels, options, sum);
  std::complex<double> value = 0.0;
  if (ctx.backend != Backend::meta) download(ctx, sum, Tensor(&value, sum.dtype(), {1}));
  return value.real();
}

void Gemma4ForConditionalGeneration::add_loss(Context& ctx, const TextInputs& inputs,
                                              const ConstTensor& labels, const LossOptions& options,
                                              const Tensor& sum) {
  const ArenaScope scope(ctx.activations);
  if (labels.shape() != Shape{inputs.rows(), inputs.cols()}) {
    fail("labels", "are " + labels.shape().str() + ", expected the shape of the inputs");
  }
  const nn::Recompute policy = options.backward ? options.policy : nn::Recompute::block;
  const ConstTensor targets = shifted_targets(ctx, labels);
  const Tensor hidden =
      text_->forward(ctx, inputs, {.policy = policy, .image_rule = options.image_rule}, pass_);
  ops::LinearCrossEntropyArgs args{.x = hidden,
                                   .w = head().value,
                                   .targets = targets,
                                   .softcap = config().text.final_logit_softcapping,
                                   .grad_scale = options.grad_scale,
                                   .loss = sum};
  if (options.backward) {
    args.dx = ctx.activations.alloc(hidden.dtype(), hidden.shape());
    args.dw = head().grad;
  }
  ops::linear_cross_entropy(ctx, args);
  if (!options.backward) return;
  text_->backward(ctx, args.dx, pass_, layer_hooks(ctx, options));
  if (options.on_gradients) options.on_gradients(ctx, other_parameters());
}

void Gemma4ForConditionalGeneration::next_logits(Context& ctx, const TextInputs& inputs,
                                                 GenerationCache& cache, const Tensor& logits) {
  const ArenaScope scope(ctx.activations);
  const ArenaScope staging(ctx.staging);
  const int64_t rows = inputs.rows();
  const int64_t cols = inputs.cols();
  const Tensor hidden =
      text_->forward(ctx, inputs, {.policy = nn::Recompute::block, .cache = &cache}, pass_);
  const Tensor by_row = hidden.view({rows, cols, hidden.dim(1)});
  head_logits(ctx, by_row.slice(1, cols - 1, 1).slice(1, 0, 1).rows(), logits);
}

template <class Run>
MemoryPlan Gemma4ForConditionalGeneration::measure(Run&& run) {
  Context meta =
      Context::meta(options_.backend == Backend::meta ? options_.target : options_.backend);
  const Gemma4TextModel::Pass before = pass_;
  run(meta);
  pass_ = before;
  return meta.plan();
}

MemoryPlan Gemma4ForConditionalGeneration::plan_loss(const TextInputs& inputs,
                                                     const LossOptions& options) {
  const ConstTensor labels(nullptr, Dtype::i64, {inputs.rows(), inputs.cols()});
  return measure([&](Context& meta) { loss(meta, inputs, labels, options); });
}

MemoryPlan Gemma4ForConditionalGeneration::plan_forward(const TextInputs& inputs,
                                                        const ForwardOptions& options) {
  return measure([&](Context& meta) { forward(meta, inputs, options); });
}

MemoryPlan Gemma4ForConditionalGeneration::plan_next_logits(int64_t rows, int64_t cols,
                                                            int64_t max_tokens) {
  GenerationCache cache(Backend::meta, dtype(), config(), rows, max_tokens, cols);
  return measure([&](Context& meta) {
    next_logits(meta, {.input_ids = ConstTensor(nullptr, Dtype::i64, {rows, cols})}, cache,
                Tensor(nullptr, accumulate_dtype(dtype()), {rows, config().text.vocab_size}));
  });
}

}  // namespace lapidary::gemma4
