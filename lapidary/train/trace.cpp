#include "lapidary/train/trace.h"

#include <algorithm>
#include <deque>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "lapidary/data/sample.h"
#include "lapidary/parallel/data_parallel.h"
#include "lapidary/train/trace_inputs.h"

namespace lapidary {
namespace {

using gemma4::Gemma4ForConditionalGeneration;

int64_t count_targets(const ConstTensor& labels) {
  int64_t count = 0;
  for (int64_t t = 0; t < labels.numel(); ++t) {
    if (t % labels.dim(1) != 0 && labels.as<int64_t>()[t] != kIgnoreLabel) ++count;
  }
  return count;
}

class Tracer {
 public:
  Tracer(const TraceOptions& options, const MeshGroups& groups)
      : options_(options),
        data_(groups.data()),
        file_(options.inputs, options.dtype),
        share_(file_.share(data_.size(), data_.rank())),
        model_(Gemma4ForConditionalGeneration::from_pretrained(
            options.model, {.dtype = options.dtype,
                            .backend = options.dtype == Dtype::f64 ? Backend::ref : options.backend,
                            .groups = &groups})) {}

  void run() {
    forward();
    if (file_.labels().defined())
      loss();
    else if (options_.grads)
      fail(options_.inputs, "holds no labels", "--grads needs them");
    if (data_.rank() == 0) write_safetensors(options_.output, out_);
  }

 private:
  // A tensor of this rank's rows, on the host: those of all ranks are written, in their order.
  // Collective.
  void add_rows(const std::string& name, const ConstTensor& mine) {
    if (data_.size() == 1) return add(name, mine);
    std::vector<int64_t> send(static_cast<size_t>(data_.size())), receive(send);
    send[0] = share_.rows.size();
    for (int64_t rank = 0; rank < data_.size() && data_.rank() == 0; ++rank) {
      receive[static_cast<size_t>(rank)] = dealt(file_.rows(), data_.size(), rank).size();
    }
    Shape shape = mine.shape();
    shape[0] = data_.rank() == 0 ? file_.rows() : 0;
    const Tensor whole = owned_.emplace_back(Backend::cpu, mine.dtype(), shape).get();
    data_.all_to_all_v(mine.slice(0, 0, send[0]), send, whole, receive);
    if (data_.rank() == 0) add(name, whole);
  }

  void add(const std::string& name, const ConstTensor& t) {
    const bool integer = t.dtype() == Dtype::i32 || t.dtype() == Dtype::i64;
    const Dtype target =
        integer ? t.dtype() : (options_.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32);
    out_.push_back(
        {.name = name, .shape = t.shape(), .dtype = t.dtype(), .target = target, .data = t.data()});
  }

  ConstTensor host(const ConstTensor& t) {
    if (on_host(model_.backend())) return t;
    return owned_.emplace_back(to_host(model_.backend(), t)).get();
  }

  void forward() {
    const gemma4::TextInputs& inputs = share_.inputs;
    const gemma4::ForwardOptions want{.output_hidden_states = true};
    const MemoryPlan plan = model_.plan_forward(file_.largest_share(data_.size()), want);
    forward_context_ = Context::make(model_.backend(), plan);
    forward_ = model_.forward(forward_context_, inputs, want);
    add_rows("logits", forward_.logits.get());
    for (size_t i = 0; i < forward_.hidden_states.size(); ++i) {
      add_rows("hidden_states." + std::to_string(i), forward_.hidden_states[i].get());
    }
    const auto& routing = model_.last_pass().routing;
    for (size_t i = 0; i < routing.size() && routing[i].decided; ++i) {
      const Shape shape{inputs.rows(), inputs.cols(), routing[i].indices.dim(1)};
      add_rows("router_indices." + std::to_string(i), host(routing[i].indices).view(shape));
      add_rows("router_weights." + std::to_string(i), host(routing[i].weights).view(shape));
    }
  }

  void loss() {
    const int64_t count = std::max<int64_t>(count_targets(file_.labels()), 1);
    const gemma4::LossOptions want{.policy = options_.recompute,
                                   .backward = options_.grads,
                                   .grad_scale = 1.0 / static_cast<double>(count)};
    if (options_.grads) model_.zero_gradients();
    const MemoryPlan plan = model_.plan_loss(file_.largest_share(data_.size()), want);
    Context ctx = Context::make(model_.backend(), plan);
    const double sum = model_.loss(ctx, share_.inputs, share_.labels, want);
    mean_loss_ = DataParallel(data_).sum(sum) / static_cast<double>(count);
    add("loss", ConstTensor(&mean_loss_, Dtype::f64, {1}));
    if (!options_.grads) return;
    model_.for_each_parameter([&](Parameter& p) {
      if (!p.trainable || p.buffer) return;
      OwnedTensor whole = model_.whole_gradient(p);
      if (data_.rank() != 0) return;
      add("grad." + p.name, owned_.emplace_back(std::move(whole))->view(p.shape));
    });
  }

  TraceOptions options_;
  ProcessGroup& data_;
  TraceInputs file_;
  TraceInputs::Share share_;
  Gemma4ForConditionalGeneration model_;
  Context forward_context_;  // the routing that is written lies in its arena
  gemma4::ForwardOutput forward_;
  double mean_loss_ = 0.0;
  std::deque<OwnedTensor> owned_;  // what is written and lies nowhere else
  std::vector<TensorSource> out_;
};

}  // namespace

void trace(const TraceOptions& options, const MeshGroups& groups) { Tracer(options, groups).run(); }

}  // namespace lapidary
