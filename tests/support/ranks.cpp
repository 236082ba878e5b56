#include "tests/support/ranks.h"

#include <algorithm>

#include "lapidary/parallel/data_parallel.h"
#include "tests/support/tensors.h"

namespace lapidary::test {
namespace {

Gemma4ForConditionalGeneration model_on(const GoldenCase& golden, const MeshGroups& groups,
                                        const RanksOptions& options) {
  const bool reference = options.dtype == Dtype::f64;
  return Gemma4ForConditionalGeneration::from_pretrained(
      golden.directory, {.dtype = options.dtype,
                         .backend = reference ? Backend::ref : Backend::cpu,
                         .groups = &groups,
                         .resident_weights = options.resident_weights,
                         .shard_alignment = options.shard_alignment});
}

// Padding throughout: nothing counts.
GoldenInputs padding_of(GoldenInputs row) {
  row.attention_mask = zeros(Dtype::i64, row.input_ids->shape());
  if (row.packed_seq_ids->defined()) row.packed_seq_ids = zeros(Dtype::i64, row.input_ids->shape());
  fill(row.labels.get(), -100);
  return row;
}

double peak_of(const Tensor& t, const std::vector<uint8_t>& real) {
  const int64_t width = t.numel() / static_cast<int64_t>(real.size());
  double peak = 0.0;
  for (int64_t i = 0; i < t.numel(); ++i) {
    if (real[static_cast<size_t>(i / width)] != 0) peak = std::max(peak, std::abs(at(t, i)));
  }
  return peak;
}

// A context for this rank's rows whose memory does for the rank with the most: its tokens may all
// come here.
template <class Plan>
Context context_for(const Gemma4ForConditionalGeneration& model, const GoldenInputs& all,
                    const DealtRows& mine, const ProcessGroup& data, Plan&& plan_of) {
  const int64_t most = dealt(all.input_ids->dim(0), data.size(), 0).size();
  const MemoryPlan own = plan_of(mine.inputs.text()), largest = plan_of(all.rows(0, most).text());
  Context ctx = Context::make(model.backend(), {std::max(own.activations, largest.activations),
                                                std::max(own.scratch, largest.scratch),
                                                std::max(own.staging, largest.staging)});
  ctx.activations.set_poison(true);
  ctx.scratch.set_poison(true);
  return ctx;
}

}  // namespace

std::vector<MeshOptions> legal_meshes(int64_t ranks, bool experts) {
  std::vector<MeshOptions> out;
  for (int64_t replicas = 1; replicas <= ranks; ++replicas) {
    for (int64_t ep = 1; ep <= (experts ? ranks : 1); ++ep) {
      const MeshOptions mesh{.world_size = ranks, .dp_replicate_size = replicas, .ep_size = ep};
      if (check_mesh(mesh).empty()) out.push_back(mesh);
    }
  }
  return out;
}

bool has_experts(const GoldenCase& golden) { return golden.name.rfind("moe", 0) == 0; }

std::string name_of(const MeshOptions& mesh) {
  return "dp_replicate " + std::to_string(mesh.dp_replicate_size) + ", dp_shard " +
         std::to_string(mesh.world_size / mesh.dp_replicate_size) + ", ep " +
         std::to_string(mesh.ep_size);
}

DealtRows::DealtRows(const GoldenInputs& all, const ProcessGroup& data)
    : rows(dealt(all.input_ids->dim(0), data.size(), data.rank())),
      inputs(rows.empty() ? padding_of(all.rows(0, 1)) : all.rows(rows.begin, rows.size())) {}

RanksErrors errors_on_ranks(const GoldenCase& golden, const MeshGroups& groups,
                            const RanksOptions& options) {
  Gemma4ForConditionalGeneration model = model_on(golden, groups, options);
  const DealtRows mine(golden.inputs, groups.data());
  RanksErrors out;
  Context forward =
      context_for(model, golden.inputs, mine, groups.data(),
                  [&](const gemma4::TextInputs& inputs) { return model.plan_forward(inputs); });
  const gemma4::ForwardOutput got = model.forward(forward, mine.inputs.text(), {});
  const Tensor& logits = golden.expected.get("logits");
  if (!mine.rows.empty()) {
    const Tensor expected = logits.slice(0, mine.rows.begin, mine.rows.size());
    const std::vector<uint8_t> real = mine.inputs.real();
    out.logits = token_error(got.logits.get(), expected, real).peak * peak_of(expected, real) /
                 peak_of(logits, golden.inputs.real());
  }
  const DataParallel data(groups.data());
  const auto count = static_cast<double>(data.sum(mine.rows.empty() ? 0 : mine.inputs.targets()));
  const gemma4::LossOptions loss{.policy = options.recompute, .grad_scale = 1.0 / count};
  Context ctx =
      context_for(model, golden.inputs, mine, groups.data(),
                  [&](const gemma4::TextInputs& inputs) { return model.plan_loss(inputs, loss); });
  model.zero_gradients(ctx, options.gradients);
  const double sum = data.sum(model.loss(ctx, mine.inputs.text(), mine.inputs.labels.get(), loss));
  out.loss = std::abs(sum / count / at(golden.expected.get("loss"), 0) - 1.0);
  Gradients gradients;
  model.for_each_parameter([&](Parameter& p) {
    if (!p.grad.defined()) return;
    OwnedTensor whole = model.whole_gradient(p);
    if (whole->defined()) gradients.emplace(p.name, std::move(whole));
  });
  if (groups.rank() == 0) out.gradients = gradient_errors(gradients, golden.expected);
  return out;
}

Trajectory train_on_ranks(const GoldenCase& golden, const MeshGroups& groups,
                          const RanksOptions& options, int64_t steps, const GradientFlow& flow) {
  Gemma4ForConditionalGeneration model = model_on(golden, groups, options);
  AdamW optimizer(model.backend(), {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8},
                  model.optimizer_parameters());
  TrainStep step(model, optimizer, flow);
  const TensorFile train = golden.train();
  const DataParallel data(groups.data());
  const int64_t parts = flow.micro_batches;
  Trajectory out;
  for (int64_t s = 0; s < steps; ++s) {
    const GoldenInputs batch = GoldenInputs::from(train, "batch" + std::to_string(s % 4) + ".");
    const auto count = static_cast<double>(batch.targets());
    std::vector<DealtRows> mine;
    std::vector<MicroBatch> micro;
    const int64_t rows = batch.input_ids->dim(0);
    for (int64_t i = 0; i < parts; ++i) {
      const Interval part = dealt(rows, parts, i);
      mine.emplace_back(batch.rows(part.begin, part.size()), groups.data());
    }
    for (const DealtRows& m : mine) micro.push_back({m.inputs.text(), m.inputs.labels.get()});
    // Of any rank: its tokens may all come here.
    const int64_t most = dealt(dealt(rows, parts, 0).size(), groups.data().size(), 0).size();
    Context ctx = Context::make(
        model.backend(),
        step.plan(gemma4::TextInputs::of_shape(most, batch.input_ids->dim(1)), options.recompute));
    ctx.activations.set_poison(true);
    ctx.scratch.set_poison(true);
    step.issue(ctx, micro,
               {.recompute = options.recompute,
                .max_grad_norm = 1.0,
                .lr = 1e-3,
                .weight_decay = 0.01,
                .grad_scale = 1.0 / count});
    const TrainStep::Result result = step.read(ctx);
    out.losses.push_back(data.sum(result.loss) / count);
    out.grad_norms.push_back(result.grad_norm);
  }
  return out;
}

}  // namespace lapidary::test
