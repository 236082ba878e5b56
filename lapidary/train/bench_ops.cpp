#include <set>

#include "lapidary/models/gemma4/cost.h"
#include "lapidary/ops/attention.h"
#include "lapidary/ops/loss.h"
#include "lapidary/ops/matmul.h"
#include "lapidary/train/bench_run.h"

namespace lapidary {
namespace {

using gemma4::LayerConfig;
using gemma4::LayerType;
using Length = BenchRun::Length;

constexpr double kWeightDeviation = 0.02;

// The first layer of each type, and its name in the lines.
struct Example {
  const char* name;
  const LayerConfig* layer;
};
std::vector<Example> examples(const gemma4::TextConfig& text) {
  std::vector<Example> out;
  for (const auto& [type, name] : {std::pair(LayerType::sliding_attention, "sliding"),
                                   std::pair(LayerType::full_attention, "full")}) {
    for (const LayerConfig& layer : text.layers) {
      if (layer.type != type) continue;
      out.push_back({name, &layer});
      break;
    }
  }
  return out;
}

double real(int64_t n) { return static_cast<double>(n); }

void bench_core(BenchRun& run, const Example& example) {
  const BenchOptions& o = run.options;
  const LayerConfig& layer = *example.layer;
  const int64_t heads = run.text.num_attention_heads, groups = layer.num_key_value_heads;
  const Shape of_queries{o.batch, o.seq, heads, layer.head_dim};
  const Shape of_keys{o.batch, o.seq, groups, layer.head_dim};
  const bool sliding = layer.type == LayerType::sliding_attention;
  const ops::MaskSpec mask{.sliding = sliding, .window = sliding ? run.text.sliding_window : 0};
  const OwnedTensor q = run.random(of_queries), k = run.random(of_keys), v = run.random(of_keys);
  const OwnedTensor o_out = run.zeros(of_queries), lse = run.zero_sums({o.batch, heads, o.seq});
  const double pairs = gemma4::visible_pairs(o.seq, mask.window) * real(o.batch);
  const double query_bytes = real(q->bytes()), key_bytes = real(k->bytes());
  BenchLine line{.part = std::string(example.name) + " forward",
                 .shape = "q " + of_queries.str() + ", k " + of_keys.str(),
                 .flops = gemma4::core_cost(heads, layer.head_dim, pairs),
                 .bytes = 2.0 * (query_bytes + key_bytes),
                 .tokens = real(run.tokens())};
  run.measure(line, Length::brief, [&](Context& ctx) {
    ops::attention(ctx, {.q = q.get(),
                         .k = k.get(),
                         .v = v.get(),
                         .mask = mask,
                         .o = o_out.get(),
                         .lse = lse.get()});
  });

  const OwnedTensor dout = run.random(of_queries), dq = run.zeros(of_queries);
  const OwnedTensor dk = run.zero_sums(of_keys), dv = run.zero_sums(of_keys);
  line.part = std::string(example.name) + " backward";
  line.flops *= 2.5;
  line.bytes = 4.0 * query_bytes + 2.0 * key_bytes + 2.0 * real(dk->bytes() + dv->bytes());
  run.measure(line, Length::brief, [&](Context& ctx) {
    ops::attention_bwd(ctx, {.dout = dout.get(),
                             .q = q.get(),
                             .k = k.get(),
                             .v = v.get(),
                             .o = o_out.get(),
                             .lse = lse.get(),
                             .mask = mask,
                             .dq = dq.get(),
                             .dk = dk.get(),
                             .dv = dv.get()});
  });
}

// y = x W^T with both gradients.
void bench_linear(BenchRun& run, const std::string& name, int64_t in, int64_t out) {
  const int64_t rows = run.tokens();
  const OwnedTensor x = run.random({rows, in}), w = run.random({out, in}, kWeightDeviation);
  const OwnedTensor y = run.zeros({rows, out}), dy = run.random({rows, out}, 0.01);
  const OwnedTensor dx = run.zeros({rows, in}), dw = run.zero_sums({out, in});
  const double both = real(x->bytes() + y->bytes());
  BenchLine line{.part = name + " forward",
                 .shape = "x " + x->shape().str() + ", w " + w->shape().str(),
                 .flops = 2.0 * real(rows) * real(in) * real(out),
                 .bytes = both + real(w->bytes()),
                 .tokens = real(rows)};
  run.measure(line, Length::brief, [&](Context& ctx) {
    ops::matmul(ctx, {.a = x.get(), .b = w.get(), .out = y.get(), .trans_b = true});
  });
  line.part = name + " dgrad";
  run.measure(line, Length::brief, [&](Context& ctx) {
    ops::matmul(ctx, {.a = dy.get(), .b = w.get(), .out = dx.get()});
  });
  line.part = name + " wgrad";
  line.bytes = both + 2.0 * real(dw->bytes());
  run.measure(line, Length::brief, [&](Context& ctx) {
    ops::matmul(
        ctx, {.a = dy.get(), .b = x.get(), .out = dw.get(), .trans_a = true, .accumulate = true});
  });
}

}  // namespace

// Linear layer, softcap and cross entropy over the whole vocabulary.
void bench_head(BenchRun& run) {
  const int64_t rows = run.tokens(), hidden = run.text.hidden_size, vocab = run.text.vocab_size;
  const std::vector<int64_t> ids = run.random_ids(rows, vocab);
  const OwnedTensor targets = run.on_backend(ConstTensor(ids.data(), Dtype::i64, {rows}));
  const OwnedTensor x = run.random({rows, hidden});
  const OwnedTensor w = run.random({vocab, hidden}, kWeightDeviation);
  const OwnedTensor loss = run.zeros(Dtype::f64, {1});
  ops::LinearCrossEntropyArgs args{.x = x.get(),
                                   .w = w.get(),
                                   .targets = targets.get(),
                                   .softcap = run.text.final_logit_softcapping,
                                   .grad_scale = 1.0 / real(rows),
                                   .loss = loss.get()};
  const auto work = [&](Context& ctx) { ops::linear_cross_entropy(ctx, args); };
  BenchLine line{.part = "forward",
                 .shape = "x " + x->shape().str() + ", w " + w->shape().str(),
                 .flops = 2.0 * real(rows) * real(hidden) * real(vocab),
                 .bytes = real(x->bytes() + w->bytes()),
                 .tokens = real(rows)};
  run.measure(line, Length::brief, work);
  const OwnedTensor dx = run.zeros({rows, hidden}), dw = run.zero_sums({vocab, hidden});
  args.dx = dx.get();
  args.dw = dw.get();
  line.part = "forward and backward";
  line.flops *= 3.0;
  line.bytes += real(dx->bytes() + 2 * dw->bytes());
  run.measure(line, Length::brief, work);
}

// The core of one sliding and one full layer: queries, keys and values in, nothing else.
void bench_attention(BenchRun& run) {
  for (const Example& example : examples(run.text)) bench_core(run, example);
}

// The dense products of one layer of each type, each shape once.
void bench_gemm(BenchRun& run) {
  const int64_t hidden = run.text.hidden_size;
  std::set<std::pair<int64_t, int64_t>> done;
  const auto linear = [&](const std::string& name, int64_t in, int64_t out) {
    if (done.emplace(in, out).second) bench_linear(run, name, in, out);
  };
  for (const auto& [name, layer] : examples(run.text)) {
    const std::string type = name;
    const int64_t queries = run.text.num_attention_heads * layer->head_dim;
    linear(type + ".q_proj", hidden, queries);
    linear(type + ".k_proj", hidden, layer->num_key_value_heads * layer->head_dim);
    linear(type + ".o_proj", queries, hidden);
  }
  for (const LayerConfig& layer : run.text.layers) {
    const std::string mlp = "mlp" + std::to_string(layer.intermediate_size);
    linear(mlp + ".gate_proj", hidden, layer.intermediate_size);
    linear(mlp + ".down_proj", layer.intermediate_size, hidden);
  }
  const int64_t width = run.text.hidden_size_per_layer_input;
  if (width == 0) return;
  linear("per_layer_input_gate", hidden, width);
  linear("per_layer_projection", width, hidden);
  linear("per_layer_model_projection", hidden, width * run.text.num_hidden_layers);
}

}  // namespace lapidary
