#include "lapidary/train/train_step.h"

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "lapidary/ops/elementwise.h"

namespace lapidary {

using gemma4::GradientBuffers;

TrainStep::TrainStep(gemma4::Gemma4ForConditionalGeneration& model, AdamW& optimizer,
                     const DataParallel& data_parallel, GradientBuffers gradients)
    : model_(model),
      optimizer_(optimizer),
      data_parallel_(data_parallel),
      gradients_(gradients),
      loss_(model.backend(), Dtype::f64, {1}),
      spare_loss_(model.backend(), Dtype::f64, {1}) {
  model.for_each_parameter([&](Parameter& p) { parameters_.push_back(&p); });
  model.zero_gradients(gradients);
}

MemoryPlan TrainStep::plan(const gemma4::TextInputs& shape, nn::Recompute recompute,
                           int64_t count) {
  const auto squares = [&](Context& ctx, const std::vector<Parameter*>& ready) {
    for (const Parameter* p : ready) optimizer_.add_squares(ctx, *p);
  };
  MemoryPlan plan = model_.plan_loss(shape, {.policy = recompute, .on_gradients = squares});
  // Inputs of every pass stay until the step is done.
  plan.staging *= gradients_ == GradientBuffers::per_layer ? 2 : count;
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
  if (gradients_ == GradientBuffers::whole) return issue_whole(ctx, batches, options);
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
    model_.add_loss(ctx, batch.inputs, batch.labels,
                    {.policy = o.recompute, .grad_scale = o.grad_scale}, loss_.get());
  }
  data_parallel_.reduce_gradients(parameters_);
  optimizer_.add_squares(ctx);
  optimizer_.clip(ctx, o.max_grad_norm);
  optimizer_.step(ctx, o.lr, o.weight_decay);
}

void TrainStep::issue_per_layer(Context& ctx, const MicroBatch& batch, const TrainStepOptions& o) {
  const bool twice = o.max_grad_norm > 0.0;
  const auto pass = [&](const Tensor& loss, bool count, bool update) {
    clear(ctx, loss);
    const auto use = [&](Context& at, const std::vector<Parameter*>& ready) {
      data_parallel_.reduce_gradients(ready);
      for (Parameter* p : ready) {
        if (count) optimizer_.add_squares(at, *p);
      }
      if (count && update) optimizer_.clip(at, 0.0);  // from here on, nothing if not finite
      for (Parameter* p : ready) {
        if (update) optimizer_.update(at, *p, o.lr, o.weight_decay);
      }
    };
    model_.add_loss(ctx, batch.inputs, batch.labels,
                    {.policy = o.recompute, .grad_scale = o.grad_scale, .on_gradients = use}, loss);
  };
  pass(loss_.get(), true, !twice);
  if (!twice) return;
  optimizer_.clip(ctx, o.max_grad_norm);
  pass(spare_loss_.get(), false, true);
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
