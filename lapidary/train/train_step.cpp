#include "lapidary/train/train_step.h"

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "lapidary/ops/elementwise.h"

namespace lapidary {

namespace {

// Per micro-batch sums need no whole gradients beyond one layer's.
GradientBuffers buffers_for(const GradientFlow& flow, bool sharded) {
  if (flow.optimizer_in_bwd) return GradientBuffers::per_layer;
  const bool defer = flow.defer_fsdp_grad_sync && flow.micro_batches > 1;
  return sharded && !defer ? GradientBuffers::sharded : GradientBuffers::whole;
}

}  // namespace

TrainStep::TrainStep(gemma4::Gemma4ForConditionalGeneration& model, AdamW& optimizer,
                     const GradientFlow& flow)
    : model_(model),
      optimizer_(optimizer),
      flow_(flow),
      gradients_(buffers_for(flow, model.fsdp().sharded())),
      loss_(model.backend(), Dtype::f64, {1}),
      spare_loss_(model.backend(), Dtype::f64, {1}) {
  model.zero_gradients(gradients_);
}

MemoryPlan TrainStep::plan(const gemma4::TextInputs& shape, nn::Recompute recompute) {
  const auto squares = [&](Context& ctx, const std::vector<Parameter*>& ready) {
    for (const Parameter* p : ready) optimizer_.add_squares(ctx, *p);
  };
  MemoryPlan plan = model_.plan_loss(shape, {.policy = recompute, .on_gradients = squares});
  // Inputs of every pass stay until the step is done.
  plan.staging *= flow_.optimizer_in_bwd ? 2 : flow_.micro_batches;
  return plan;
}

void TrainStep::clear(Context& ctx, const Tensor& loss) {
  model_.zero_gradients(ctx, gradients_);
  model_.language_model().reset_expert_loads(ctx);
  ops::fill_zero(ctx, loss);
}

void TrainStep::issue(Context& ctx, std::span<const MicroBatch> batches,
                      const TrainStepOptions& options) {
  optimizer_.begin_step();
  optimizer_.reset_squares(ctx);
  if (!flow_.optimizer_in_bwd) return issue_whole(ctx, batches, options);
  if (batches.size() != 1) {
    fail("optimizer_in_bwd", std::to_string(batches.size()) + " micro-batches in a step",
         "make global_batch_size equal to local_batch_size");
  }
  issue_per_layer(ctx, batches.front(), options);
}

void TrainStep::issue_whole(Context& ctx, std::span<const MicroBatch> batches,
                            const TrainStepOptions& o) {
  clear(ctx, loss_.get());
  for (const MicroBatch& batch : batches) {
    const bool sync = gradients_ != GradientBuffers::whole || &batch == &batches.back();
    model_.add_loss(ctx, batch.inputs, batch.labels,
                    {.policy = o.recompute, .grad_scale = o.grad_scale, .sync_gradients = sync},
                    loss_.get());
  }
  optimizer_.add_squares(ctx);
  model_.fsdp().sum_squares(ctx, optimizer_.squares());
  optimizer_.clip(ctx, o.max_grad_norm);
  optimizer_.step(ctx, o.lr, o.weight_decay);
  model_.weights_changed();
}

void TrainStep::issue_per_layer(Context& ctx, const MicroBatch& batch, const TrainStepOptions& o) {
  const bool twice = o.max_grad_norm > 0.0;
  const auto pass = [&](const Tensor& loss, bool count, bool update) {
    clear(ctx, loss);
    const auto use = [&](Context& at, const std::vector<Parameter*>& ready) {
      for (Parameter* p : ready) {
        if (count) optimizer_.add_squares(at, *p);
      }
      // From here on nothing if not finite; on several ranks by what this rank has seen.
      if (count && update) optimizer_.clip(at, 0.0);
      for (Parameter* p : ready) {
        if (update) optimizer_.update(at, *p, o.lr, o.weight_decay);
      }
    };
    model_.add_loss(ctx, batch.inputs, batch.labels,
                    {.policy = o.recompute, .grad_scale = o.grad_scale, .on_gradients = use}, loss);
  };
  pass(loss_.get(), true, !twice);
  model_.fsdp().sum_squares(ctx, optimizer_.squares());
  optimizer_.clip(ctx, o.max_grad_norm);
  if (twice) pass(spare_loss_.get(), false, true);
  model_.weights_changed();
}

TrainStep::Result TrainStep::read(Context& ctx) const {
  Result result;
  download(ctx, loss_.get(), Tensor(&result.loss, Dtype::f64, {1}));
  OwnedTensor norm(Backend::cpu, Dtype::f64, {1});
  download(ctx, optimizer_.norm(), norm.get());
  result.grad_norm = norm->as<double>()[0];
  return result;
}

}  // namespace lapidary
