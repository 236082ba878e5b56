#include <algorithm>

#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"
#include "lapidary/nn/moe.h"
#include "lapidary/ops/glu.h"
#include "lapidary/ops/moe.h"
#include "lapidary/train/bench_run.h"

namespace lapidary {
namespace {

double real(int64_t n) { return static_cast<double>(n); }

// top_k different experts for each token, evenly drawn.
std::vector<int32_t> random_choice(int64_t tokens, int64_t experts, int64_t top_k) {
  Rng rng(11);
  std::vector<int32_t> out;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto first = static_cast<std::ptrdiff_t>(out.size());
    while (static_cast<int64_t>(out.size()) - first < top_k) {
      const auto expert = static_cast<int32_t>(rng.below(experts));
      if (std::find(out.begin() + first, out.end(), expert) == out.end()) out.push_back(expert);
    }
  }
  return out;
}

// One layer's experts with the operands and results of every operation, each in its own memory, so
// that any of them can run any number of times.
class ExpertsBench {
 public:
  explicit ExpertsBench(BenchRun& run)
      : run_(run),
        tokens_(run.tokens()),
        hidden_(run.text.hidden_size),
        inner_(run.text.moe_intermediate_size),
        experts_(run.text.num_experts),
        top_k_(run.text.top_k_experts),
        align_(ops::row_alignment(Context::meta(run.options.backend))),
        rows_(ops::max_sorted_rows(tokens_, top_k_, experts_, align_)) {
    make_routing();
    layer_ = nn::GroupedExperts("experts", experts_, hidden_, inner_);
    layer_.gate_up_proj.value = keep(run.random({experts_, 2 * inner_, hidden_}, 0.02));
    layer_.down_proj.value = keep(run.random({experts_, hidden_, inner_}, 0.02));
    x_ = keep(run.random({tokens_, hidden_}));
    y_ = keep(run.zeros({tokens_, hidden_}));
    sorted_ = keep(run.zeros({rows_, hidden_}));
    gate_up_ = keep(run.zeros({rows_, 2 * inner_}));
    h_ = keep(run.zeros({rows_, inner_}));
    out_ = keep(run.zeros({rows_, hidden_}));
  }

  void forward() {
    measure("sort", 0.0, 12.0 * pairs(), [&](Context& ctx) { sort(ctx); });
    measure("gather", 0.0, bytes(x_) + pair_bytes(hidden_), [&](Context& ctx) {
      ops::moe_gather(
          ctx,
          {.x = x_, .row_token = routing_.row_token, .offsets = routing_.offsets, .out = sorted_});
    });
    product("gate_up", sorted_, layer_.gate_up_proj, gate_up_, true);
    measure("geglu", 0.0, pair_bytes(3 * inner_), [&](Context& ctx) {
      ops::geglu(ctx, {.gate = gate_up_.slice(1, 0, inner_),
                       .up = gate_up_.slice(1, inner_, inner_),
                       .row_weight = routing_.row_weight,
                       .h = h_});
    });
    product("down", h_, layer_.down_proj, out_, true);
    measure("combine", 0.0, bytes(y_) + pair_bytes(hidden_), [&](Context& ctx) {
      ops::moe_combine(ctx, {.y = out_, .pair_row = routing_.pair_row, .out = y_});
    });
    measure("forward", flops(), weight_bytes(), [&](Context& ctx) { whole(ctx, false); });
  }

  void backward() {
    layer_.gate_up_proj.grad = keep(run_.zero_sums(layer_.gate_up_proj.shape));
    layer_.down_proj.grad = keep(run_.zero_sums(layer_.down_proj.shape));
    dy_ = keep(run_.random({tokens_, hidden_}, 0.01));
    dx_ = keep(run_.zeros({tokens_, hidden_}));
    d_row_weight_ = keep(run_.zero_sums({rows_}));
    const Tensor d_sorted = keep(run_.zeros({rows_, hidden_}));
    const Tensor dh = keep(run_.zeros({rows_, inner_}));
    const Tensor d_gate_up = keep(run_.zeros({rows_, 2 * inner_}));
    Context ctx = Context::make(run_.options.backend);
    ops::moe_gather(
        ctx,
        {.x = dy_, .row_token = routing_.row_token, .offsets = routing_.offsets, .out = d_sorted});
    product("down dgrad", d_sorted, layer_.down_proj, dh, false);
    weight_gradient("down wgrad", d_sorted, h_, layer_.down_proj);
    measure("geglu_bwd", 0.0, pair_bytes(5 * inner_), [&](Context& c) {
      ops::geglu_bwd(c, {.dh = dh,
                         .gate = gate_up_.slice(1, 0, inner_),
                         .up = gate_up_.slice(1, inner_, inner_),
                         .row_weight = routing_.row_weight,
                         .dgate = d_gate_up.slice(1, 0, inner_),
                         .dup = d_gate_up.slice(1, inner_, inner_),
                         .drow_weight = d_row_weight_});
    });
    weight_gradient("gate_up wgrad", d_gate_up, sorted_, layer_.gate_up_proj);
    product("gate_up dgrad", d_gate_up, layer_.gate_up_proj, d_sorted, false);
    const double gradients =
        bytes(layer_.gate_up_proj.grad) + bytes(layer_.down_proj.grad);  // read and written
    measure("forward and backward", 3.0 * flops(), 2.0 * weight_bytes() + 2.0 * gradients,
            [&](Context& c) { whole(c, true); });
  }

 private:
  void make_routing() {
    const Dtype acc = accumulate_dtype(run_.options.dtype);
    const std::vector<int32_t> choice = random_choice(tokens_, experts_, top_k_);
    const std::vector<float> weights(choice.size(), 1.0F / static_cast<float>(top_k_));
    const Shape by_token{tokens_, top_k_};
    routing_.indices = keep(run_.on_backend(ConstTensor(choice.data(), Dtype::i32, by_token)));
    routing_.weights = keep(run_.on_backend(ConstTensor(weights.data(), acc, by_token)));
    routing_.counts = keep(run_.zeros(Dtype::i32, {experts_}));
    routing_.offsets = keep(run_.zeros(Dtype::i32, {experts_ + 1}));
    routing_.row_token = keep(run_.zeros(Dtype::i32, {rows_}));
    routing_.row_weight = keep(run_.zeros(acc, {rows_}));
    routing_.pair_row = keep(run_.zeros(Dtype::i32, by_token));
  }
  void sort(Context& ctx) const {
    ops::moe_sort(ctx, {.indices = routing_.indices,
                        .weights = routing_.weights,
                        .align = align_,
                        .counts = routing_.counts,
                        .offsets = routing_.offsets,
                        .row_token = routing_.row_token,
                        .row_weight = routing_.row_weight,
                        .pair_row = routing_.pair_row});
  }
  // All of the above in the layer's own order.
  void whole(Context& ctx, bool with_backward) {
    const ArenaScope scope(ctx.activations);
    nn::GroupedExperts::Saved saved;
    sort(ctx);
    layer_.forward(ctx, nn::Recompute::none, x_, routing_, y_, saved);
    if (with_backward) layer_.backward(ctx, x_, dy_, routing_, dx_, d_row_weight_, saved);
  }
  void product(const std::string& name, const Tensor& a, const Parameter& weight, const Tensor& out,
               bool trans_b) {
    const double moved = bytes(weight.value) + pair_bytes(a.dim(1) + out.dim(1));
    measure(name, 2.0 * pairs() * real(a.dim(1)) * real(out.dim(1)), moved, [&](Context& ctx) {
      ops::grouped_matmul(ctx, {.a = a,
                                .b = weight.value,
                                .counts = routing_.counts,
                                .offsets = routing_.offsets,
                                .out = out,
                                .trans_b = trans_b});
    });
  }
  void weight_gradient(const std::string& name, const Tensor& dy, const Tensor& x,
                       const Parameter& weight) {
    const double moved = 2.0 * bytes(weight.grad) + pair_bytes(dy.dim(1) + x.dim(1));
    measure(name, 2.0 * pairs() * real(dy.dim(1)) * real(x.dim(1)), moved, [&](Context& ctx) {
      ops::grouped_matmul_wgrad(ctx, {.dy = dy,
                                      .x = x,
                                      .counts = routing_.counts,
                                      .offsets = routing_.offsets,
                                      .dw = weight.grad});
    });
  }
  void measure(const std::string& part, double work, double moved,
               const std::function<void(Context&)>& run) {
    run_.measure({.part = part,
                  .shape = "x " + x_.shape().str() + ", top " + std::to_string(top_k_) + " of " +
                           std::to_string(experts_) + ", inner " + std::to_string(inner_),
                  .flops = work,
                  .bytes = moved,
                  .tokens = real(tokens_)},
                 BenchRun::Length::brief, run);
  }
  Tensor keep(OwnedTensor&& t) {
    kept_.push_back(std::move(t));
    return kept_.back().get();
  }
  static double bytes(const Tensor& t) { return real(t.bytes()); }
  double pairs() const { return real(tokens_ * top_k_); }
  double pair_bytes(int64_t columns) const { return pairs() * real(columns) * run_.width(); }
  double flops() const { return 6.0 * pairs() * real(hidden_) * real(inner_); }
  double weight_bytes() const {
    return bytes(layer_.gate_up_proj.value) + bytes(layer_.down_proj.value);
  }

  BenchRun& run_;
  int64_t tokens_, hidden_, inner_, experts_, top_k_, align_, rows_;
  std::vector<OwnedTensor> kept_;
  nn::Routing routing_;
  nn::GroupedExperts layer_;
  Tensor x_, y_, sorted_, gate_up_, h_, out_, dy_, dx_, d_row_weight_;
};

}  // namespace

// One layer's experts under random routing: every operation alone, then all of them in turn.
void bench_experts(BenchRun& run) {
  if (!run.text.enable_moe_block) {
    fail("bench experts", "the model has no experts", "use 26b-a4b or a model that has some");
  }
  ExpertsBench bench(run);
  bench.forward();
  bench.backward();
}

}  // namespace lapidary
