#include "lapidary/train/trace.h"

#include <algorithm>
#include <deque>
#include <map>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"

namespace lapidary {
namespace {

using gemma4::Gemma4ForConditionalGeneration;
using gemma4::TextInputs;

bool is_integer(FileDtype dtype) {
  switch (dtype) {
    case FileDtype::f64:
    case FileDtype::f32:
    case FileDtype::f16:
    case FileDtype::bf16: return false;
    default: return true;
  }
}

// The tensors of an input file, converted to what TextInputs asks for.
class InputFile {
 public:
  InputFile(const std::string& path, Dtype float_dtype) : reader_(path) {
    for (const TensorEntry& entry : reader_.entries()) {
      Dtype dtype = Dtype::i64;
      // Masks may be additive: always f32.
      const bool mask = entry.name.find("attention_mask") != std::string::npos;
      if (!is_integer(entry.dtype)) dtype = mask ? Dtype::f32 : float_dtype;
      OwnedTensor tensor(Backend::cpu, dtype, entry.shape);
      convert(entry, tensor.get());
      tensors_.emplace(entry.name, std::move(tensor));
    }
  }
  ConstTensor get(const std::string& name) const {
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) return {};
    return at->second.get();
  }
  TextInputs inputs() const {
    const TextInputs in{.input_ids = get("input_ids"),
                        .inputs_embeds = get("inputs_embeds"),
                        .per_layer_inputs = get("per_layer_inputs"),
                        .position_ids = get("position_ids"),
                        .attention_mask = get("attention_mask"),
                        .sliding_attention_mask = get("sliding_attention_mask"),
                        .packed_seq_ids = get("packed_seq_ids"),
                        .mm_token_type_ids = get("mm_token_type_ids")};
    if (!in.input_ids.defined() && !in.inputs_embeds.defined()) {
      fail(reader_.path(), "holds neither input_ids nor inputs_embeds");
    }
    return in;
  }

 private:
  SafetensorsReader reader_;
  std::map<std::string, OwnedTensor> tensors_;
};

int64_t count_targets(const ConstTensor& labels) {
  int64_t count = 0;
  for (int64_t t = 0; t < labels.numel(); ++t) {
    if (t % labels.dim(1) != 0 && labels.as<int64_t>()[t] != -100) ++count;
  }
  return count;
}

class Tracer {
 public:
  explicit Tracer(const TraceOptions& options)
      : options_(options),
        file_(options.inputs, options.dtype),
        model_(Gemma4ForConditionalGeneration::from_pretrained(
            options.model,
            {.dtype = options.dtype,
             .backend = options.dtype == Dtype::f64 ? Backend::ref : options.backend})) {}

  void run() {
    forward();
    if (file_.get("labels").defined())
      loss();
    else if (options_.grads)
      fail(options_.inputs, "holds no labels", "--grads needs them");
    write_safetensors(options_.output, out_);
  }

 private:
  // t lies in the memory of the model's backend, and outlives the call on the host backends only.
  void add(const std::string& name, const ConstTensor& t, const Shape& shape) {
    if (!on_host(model_.backend())) {
      fetched_.push_back(to_host(model_.backend(), t));
      return add_host(name, fetched_.back().get(), shape);
    }
    add_host(name, t, shape);
  }
  void add_host(const std::string& name, const ConstTensor& t, const Shape& shape) {
    const bool integer = t.dtype() == Dtype::i32 || t.dtype() == Dtype::i64;
    const Dtype target =
        integer ? t.dtype() : (options_.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32);
    out_.push_back(
        {.name = name, .shape = shape, .dtype = t.dtype(), .target = target, .data = t.data()});
  }

  void forward() {
    const TextInputs inputs = file_.inputs();
    const gemma4::ForwardOptions want{.output_hidden_states = true};
    const MemoryPlan plan = model_.plan_forward(inputs, want);
    forward_context_ = Context::make(model_.backend(), plan);
    forward_ = model_.forward(forward_context_, inputs, want);
    add_host("logits", forward_.logits.get(), forward_.logits->shape());
    for (size_t i = 0; i < forward_.hidden_states.size(); ++i) {
      const Tensor& x = forward_.hidden_states[i].get();
      add_host("hidden_states." + std::to_string(i), x, x.shape());
    }
    const auto& routing = model_.last_pass().routing;
    for (size_t i = 0; i < routing.size() && routing[i].decided; ++i) {
      const Shape shape{inputs.rows(), inputs.cols(), routing[i].indices.dim(1)};
      add("router_indices." + std::to_string(i), routing[i].indices, shape);
      add("router_weights." + std::to_string(i), routing[i].weights, shape);
    }
  }

  void loss() {
    const TextInputs inputs = file_.inputs();
    const ConstTensor labels = file_.get("labels");
    const int64_t count = std::max<int64_t>(count_targets(labels), 1);
    const gemma4::LossOptions want{.policy = options_.recompute,
                                   .backward = options_.grads,
                                   .grad_scale = 1.0 / static_cast<double>(count)};
    if (options_.grads) model_.zero_gradients();
    const MemoryPlan plan = model_.plan_loss(inputs, want);
    Context ctx = Context::make(model_.backend(), plan);
    mean_loss_ = model_.loss(ctx, inputs, labels, want) / static_cast<double>(count);
    out_.push_back({.name = "loss",
                    .shape = {1},
                    .dtype = Dtype::f64,
                    .target = options_.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32,
                    .data = &mean_loss_});
    model_.for_each_parameter([&](Parameter& p) {
      if (p.grad.defined()) add("grad." + p.name, p.grad, p.shape);
    });
  }

  TraceOptions options_;
  InputFile file_;
  Gemma4ForConditionalGeneration model_;
  Context forward_context_;  // the routing that is written lies in its arena
  gemma4::ForwardOutput forward_;
  double mean_loss_ = 0.0;
  std::deque<OwnedTensor> fetched_;  // from a GPU
  std::vector<TensorSource> out_;
};

}  // namespace

void trace(const TraceOptions& options) { Tracer(options).run(); }

}  // namespace lapidary
