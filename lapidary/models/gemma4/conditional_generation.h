#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lapidary/comm/mesh_groups.h"
#include "lapidary/models/gemma4/text_model.h"
#include "lapidary/parallel/fsdp.h"

namespace lapidary::gemma4 {

// Which parallel axes a configuration supports, and why not.
struct Capabilities {
  bool tp = false, cp = false, pp = false, ep = false;
  int64_t max_tp = 1;  // largest tensor-parallel size: divides every head count
  int64_t max_ep = 1;  // the number of experts
  std::string why_no_tp, why_no_pp, why_no_ep;
};

struct ModelOptions {
  Dtype dtype = Dtype::f32;  // f32 or bf16 on cpu; f64 or c128 on ref
  Backend backend = Backend::cpu;
  Backend target = Backend::cpu;  // with backend meta: whose memory plans are made
  uint64_t seed = 42;             // from_config
  // The ranks that share the model; outlives it. Null: this process alone. Axes that the
  // configuration does not support are refused before anything is loaded.
  const MeshGroups* groups = nullptr;
  // false: a rank keeps its shard of every weight and gathers layer by layer (ZeRO-3). true: the
  // gathered weights stay; gradients and optimiser state are sharded all the same (ZeRO-2).
  bool resident_weights = false;
  int64_t shard_alignment = 1;  // elements: every shard begins at a multiple of it
};

struct ForwardOptions {
  // 0: logits of all positions; n: of the last n; or exactly the positions listed.
  int64_t logits_to_keep = 0;
  std::vector<int64_t> logits_positions = {};
  bool output_hidden_states = false;
  ops::ImageRule image_rule = ops::ImageRule::google;
};
struct ForwardOutput {
  OwnedTensor logits;                      // [B, kept positions, V], softcapped
  OwnedTensor last_hidden_state;           // [B, S, H], after the final norm
  std::vector<OwnedTensor> hidden_states;  // L + 1: the input of each layer; last_hidden_state
};

// What from_pretrained noticed.
struct LoadReport {
  std::vector<std::string> warnings;
  std::vector<std::string> passthrough;  // tower tensors: not loaded, copied on export
};
struct SaveOptions {
  Dtype dtype = Dtype::bf16;  // f32, bf16 or f16
  int64_t max_shard_bytes = 5'000'000'000;
  bool overwrite = false;
  std::string tokenizer_source = {};              // directory; empty: where the model came from
  std::map<std::string, std::string> files = {};  // more small files by name
};

struct LossOptions {
  nn::Recompute policy = nn::Recompute::none;
  ops::ImageRule image_rule = ops::ImageRule::google;
  bool backward = true;     // false: loss only
  double grad_scale = 1.0;  // 1 / counted targets of the whole step
  // Called during backward whenever the gradients of some parameters are complete: for each decoder
  // layer, last to first, and then once for all others; with what optimizer_parameters() gives.
  // With GradientBuffers::per_layer this is the only time when a layer's gradients can be read. The
  // parameters may be changed at once; weights_changed() follows when the pass is over.
  std::function<void(Context&, const std::vector<Parameter*>&)> on_gradients = {};
  // On several ranks: sum the gradients over them during this backward. false, for all but the last
  // micro-batch of a step: they are accumulated where they are (GradientBuffers::whole), and
  // on_gradients is not called.
  bool sync_gradients = true;
};

using lapidary::GradientBuffers;

// The model users know: text decoder and language-model head (towers join it later).
// Names, shapes and semantics are those of transformers' class of this name.
class Gemma4ForConditionalGeneration {
 public:
  // Random weights by initialize_weights(). Errors: configuration, unsupported axis.
  static Gemma4ForConditionalGeneration from_config(const Config& config,
                                                    const ModelOptions& options);
  // A Hugging Face directory. Every missing, surplus or misshaped tensor is listed in one Error.
  static Gemma4ForConditionalGeneration from_pretrained(const std::string& path,
                                                        const ModelOptions& options);
  // The same with a configuration that differs from the directory's own.
  static Gemma4ForConditionalGeneration from_pretrained(const std::string& path,
                                                        const Config& config,
                                                        const ModelOptions& options);
  static Capabilities get_capabilities(const Config& config);
  // Sizes of tp, cp, pp and ep above 1 that the configuration or this version does not support.
  static std::vector<MeshProblem> check_parallel(const Config& config, const MeshOptions& sizes);

  // normal(0, initializer_range), pad rows zero, norms and scales one. Never all zeros. Each
  // tensor's values depend on seed and name alone.
  void initialize_weights(uint64_t seed);
  void initialize_parameter(Parameter& parameter, uint64_t seed);
  // With a tied head the logits read embed_tokens; returns whether the head is tied.
  bool tie_weights() const { return config().tie_word_embeddings; }

  // Writes a Hugging Face directory, whole or not at all: shards, index, config.json in the form
  // that was read, tokenizer files. Tensors of towers are copied from the source. Collective: every
  // rank writes its shards.
  void save_pretrained(const std::string& directory, const SaveOptions& options);
  const LoadReport& load_report() const { return load_report_; }

  // Inference. The context needs the memory of plan_forward(). Outputs own their memory.
  ForwardOutput forward(Context& ctx, const TextInputs& inputs, const ForwardOptions& options);
  // Cross entropy of labels [B, S] (i64, -100 = not counted), aligned with the inputs: position t
  // predicts labels[t + 1]. Returns the SUM over counted targets; with options.backward all
  // trainable parameters' gradients of grad_scale * sum are added to Parameter::grad.
  double loss(Context& ctx, const TextInputs& inputs, const ConstTensor& labels,
              const LossOptions& options);
  // The same without waiting for the device: adds to sum [1], f64 (c128 for c128) in the memory of
  // the backend. What it takes of ctx.staging must stay until the device is done: the caller
  // rewinds.
  void add_loss(Context& ctx, const TextInputs& inputs, const ConstTensor& labels,
                const LossOptions& options, const Tensor& sum);
  // Logits of the last position of each row, [B, V] in f32, through a cache.
  void next_logits(Context& ctx, const TextInputs& inputs, GenerationCache& cache,
                   const Tensor& logits);

  // Only shapes and presence of the inputs matter. Gradient buffers must exist (zero_gradients).
  MemoryPlan plan_loss(const TextInputs& inputs, const LossOptions& options);
  MemoryPlan plan_forward(const TextInputs& inputs, const ForwardOptions& options = {});
  MemoryPlan plan_next_logits(int64_t rows, int64_t cols, int64_t max_tokens);

  // Gradient buffers for the trainable parameters, zeroed; a second call only zeroes. per_layer
  // counts at the first call.
  void zero_gradients(GradientBuffers buffers = GradientBuffers::whole);
  void zero_gradients(Context& ctx, GradientBuffers buffers = GradientBuffers::whole);
  int64_t gradient_bytes() const { return fsdp_->gradient_bytes(); }
  void for_each_parameter(const std::function<void(Parameter&)>& f);
  Parameter& parameter(const std::string& name);  // Error when there is none
  // What an optimiser works on: see Fsdp.
  std::vector<Parameter*> optimizer_parameters() { return fsdp_->optimizer_parameters(); }
  // After optimizer_parameters() were changed from outside: what was gathered is forgotten.
  void weights_changed() { fsdp_->weights_changed(); }
  const Fsdp& fsdp() const { return *fsdp_; }
  // The whole gradient of a parameter, on the first rank; elsewhere undefined. Collective.
  OwnedTensor whole_gradient(const Parameter& p) const {
    return fsdp_->whole(p, fsdp_->shard_of(p).grad);
  }
  const MeshGroups& groups() const { return *groups_; }

  const Config& config() const { return text_->config(); }
  Gemma4TextModel& language_model() { return *text_; }
  Dtype dtype() const { return options_.dtype; }
  Backend backend() const { return options_.backend; }
  // hidden_states of the last loss() or forward(); valid until the activation arena is rewound.
  const Gemma4TextModel::Pass& last_pass() const { return pass_; }

 private:
  Gemma4ForConditionalGeneration(const Config& config, const ModelOptions& options);
  void make_fsdp();
  const Parameter& head() const;
  ConstTensor shifted_targets(Context& ctx, const ConstTensor& labels) const;
  // logits lie on the host.
  void head_logits(Context& ctx, const ConstTensor& hidden, const Tensor& logits) const;
  // Makes the weights of layer i whole, and starts on those of layer `next`.
  void gather_layer(Context& ctx, int64_t i, int64_t next);
  Tensor run_text(Context& ctx, const TextInputs& inputs, Gemma4TextModel::Options options,
                  Gemma4TextModel::Pass& pass);
  Gemma4TextModel::LayerHooks layer_hooks(Context& ctx, const LossOptions& options);
  void gradients_done(Context& ctx, const LossOptions& options, int64_t unit);
  template <class Run>
  MemoryPlan measure(Run&& run);

  ModelOptions options_;
  std::unique_ptr<MeshGroups> alone_;  // without options.groups
  const MeshGroups* groups_ = nullptr;
  std::unique_ptr<Gemma4TextModel> text_;  // stable addresses for parameters
  Parameter lm_head_;                      // untied only
  std::unique_ptr<Fsdp> fsdp_;             // owns values and gradients
  Gemma4TextModel::Pass pass_;
  std::string source_;  // where from_pretrained read
  LoadReport load_report_;
};

}  // namespace lapidary::gemma4
