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

}  // namespace

Gemma4ForConditionalGeneration::Gemma4ForConditionalGeneration(const Config& config,
                                                               const ModelOptions& options)
    : options_(options) {
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
  text_ = std::make_unique<Gemma4TextModel>(config, options.backend, &groups_->ep());
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
  make_fsdp();
}

void Gemma4ForConditionalGeneration::make_fsdp() {
  if (groups_->data().size() > 1 && options_.backend == Backend::cuda) {
    fail("model", "several ranks on GPUs are not in this version", "use device: cpu, or one rank");
  }
  std::vector<std::vector<Parameter*>> units;
  std::set<const Parameter*> of_layers;
  for (int64_t i = 0; i < config().text.num_hidden_layers; ++i) {
    std::vector<Parameter*>& unit = units.emplace_back();
    text_->visit_layer(i, [&](Parameter& p) {
      unit.push_back(&p);
      of_layers.insert(&p);
    });
  }
  std::vector<Parameter*>& root = units.emplace_back();
  for_each_parameter([&](Parameter& p) {
    if (!of_layers.contains(&p)) root.push_back(&p);
  });
  fsdp_ = std::make_unique<Fsdp>(*groups_,
                                 Fsdp::Options{.backend = options_.backend,
                                               .dtype = options_.dtype,
                                               .resident = options_.resident_weights,
                                               .alignment = options_.shard_alignment},
                                 std::move(units));
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
  const Fsdp::Shard shard = fsdp_->shard_of(p);
  ops::fill_normal(ctx, {.t = shard.value,
                         .mean = ones ? 1.0 : 0.0,
                         .deviation = ones ? 0.0 : text.initializer_range,
                         .seed = seed,
                         .stream = stream_of(p.name.c_str()),
                         .first_element = shard.interval.begin});
  if (p.init == Init::normal_pad_row_zero) {
    const int64_t row = *text.pad_token_id, width = p.shape[1];
    const Interval zero = intersect(shard.interval, {row * width, (row + 1) * width});
    const Tensor flat = shard.value.view({shard.interval.size()});
    ops::fill_zero(ctx, flat.slice(0, zero.begin - shard.interval.begin, zero.size()));
  }
  fsdp_->weights_changed();
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

void Gemma4ForConditionalGeneration::zero_gradients(GradientBuffers buffers) {
  Context ctx = Context::make(options_.backend);
  zero_gradients(ctx, buffers);
}

void Gemma4ForConditionalGeneration::zero_gradients(Context& ctx, GradientBuffers buffers) {
  fsdp_->zero_gradients(ctx, buffers);
}

void Gemma4ForConditionalGeneration::gather_layer(Context& ctx, int64_t i, int64_t next) {
  fsdp_->gather(ctx, i);
  if (next >= 0 && next < fsdp_->root()) fsdp_->prefetch(ctx, next);
}

Tensor Gemma4ForConditionalGeneration::run_text(Context& ctx, const TextInputs& inputs,
                                                Gemma4TextModel::Options options,
                                                Gemma4TextModel::Pass& pass) {
  fsdp_->gather(ctx, fsdp_->root());
  options.before_layer = [&](int64_t i) { gather_layer(ctx, i, i + 1); };
  return text_->forward(ctx, inputs, options, pass);
}

Gemma4TextModel::LayerHooks Gemma4ForConditionalGeneration::layer_hooks(
    Context& ctx, const LossOptions& options) {
  return {.before =
              [this, &ctx](int64_t i) {
                gather_layer(ctx, i, i - 1);
                fsdp_->begin_backward(ctx, i);
              },
          .after = [this, &ctx, &options](int64_t i) { gradients_done(ctx, options, i); }};
}

void Gemma4ForConditionalGeneration::gradients_done(Context& ctx, const LossOptions& options,
                                                    int64_t unit) {
  if (!options.sync_gradients) return;
  fsdp_->reduce(ctx, unit);
  if (!options.on_gradients) return;
  std::vector<Parameter*> ready = fsdp_->optimizer_parameters(unit);
  std::erase_if(ready, [](const Parameter* p) { return !p->grad.defined(); });
  options.on_gradients(ctx, ready);
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
  const Tensor hidden = run_text(
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
      run_text(ctx, inputs, {.policy = policy, .image_rule = options.image_rule}, pass_);
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
  gradients_done(ctx, options, fsdp_->root());
}

void Gemma4ForConditionalGeneration::next_logits(Context& ctx, const TextInputs& inputs,
                                                 GenerationCache& cache, const Tensor& logits) {
  const ArenaScope scope(ctx.activations);
  const ArenaScope staging(ctx.staging);
  const int64_t rows = inputs.rows();
  const int64_t cols = inputs.cols();
  const Tensor hidden =
      run_text(ctx, inputs, {.policy = nn::Recompute::block, .cache = &cache}, pass_);
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
