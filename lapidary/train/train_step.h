#pragma once

#include <span>
#include <vector>

#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/train/optimizer.h"

namespace lapidary {

struct MicroBatch {
  gemma4::TextInputs inputs;
  ConstTensor labels;  // [B, S] i64
};

struct TrainStepOptions {
  nn::Recompute recompute = nn::Recompute::none;
  double max_grad_norm = 1.0;  // <= 0: no clipping
  double lr = 0.0;
  double weight_decay = 0.0;
  double grad_scale = 1.0;  // 1 / label tokens of the step, over all ranks
};

// How gradients get from backward to the optimiser.
struct GradientFlow {
  // The optimiser runs inside backward, layer by layer, so that the gradients of one layer exist at
  // a time. One micro-batch a step; with max_grad_norm > 0 forward and backward run twice, first
  // for the norm alone.
  bool optimizer_in_bwd = false;
  // Shards on several ranks: sum the gradients over the ranks on the last micro-batch of a step
  // alone. false: on each, so that whole gradients of one layer exist at a time.
  bool defer_fsdp_grad_sync = true;
  int64_t micro_batches = 1;  // of a step, at most
};

// One optimiser step of a model, issued to its device without waiting for it. On several ranks
// every one calls the same methods, each with its own rows.
class TrainStep {
 public:
  // Both outlive the object. Makes the gradient buffers.
  TrainStep(gemma4::Gemma4ForConditionalGeneration& model, AdamW& optimizer,
            const GradientFlow& flow = {});

  // Memory for a step whose micro-batches have at most this shape.
  MemoryPlan plan(const gemma4::TextInputs& shape, nn::Recompute recompute);

  // Gradients of the sum of losses over all micro-batches, times grad_scale, clipped by their norm,
  // applied. A norm that is not finite changes no parameter (per_layer without clipping: none of
  // those that are updated after it was found).
  void issue(Context& ctx, std::span<const MicroBatch> batches, const TrainStepOptions& options);

  // Waits for the device. loss: the sum over this rank's label tokens; grad_norm: over all ranks,
  // before clipping.
  struct Result {
    double loss = 0.0, grad_norm = 0.0;
  };
  Result read(Context& ctx) const;

 private:
  void issue_whole(Context& ctx, std::span<const MicroBatch> batches, const TrainStepOptions& o);
  void issue_per_layer(Context& ctx, const MicroBatch& batch, const TrainStepOptions& options);
  void clear(Context& ctx, const Tensor& loss);

  gemma4::Gemma4ForConditionalGeneration& model_;
  AdamW& optimizer_;
  GradientFlow flow_;
  GradientBuffers gradients_;
  OwnedTensor loss_, spare_loss_;  // [1] f64
};

}  // namespace lapidary
