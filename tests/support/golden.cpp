#include "tests/support/golden.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/json.h"
#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "tests/support/tensors.h"

namespace lapidary::test {
namespace {

bool is_float(FileDtype dtype) {
  return dtype == FileDtype::f64 || dtype == FileDtype::f32 || dtype == FileDtype::f16 ||
         dtype == FileDtype::bf16;
}

// Applies `f` to each pair of a tensor of `from` and the same one of `to`.
template <class F>
void for_each_tensor(const GoldenInputs& from, GoldenInputs& to, F&& f) {
  f(from.input_ids, to.input_ids);
  f(from.attention_mask, to.attention_mask);
  f(from.position_ids, to.position_ids);
  f(from.packed_seq_ids, to.packed_seq_ids);
  f(from.mm_token_type_ids, to.mm_token_type_ids);
  f(from.labels, to.labels);
}

}  // namespace

TensorFile::TensorFile(const std::string& path) {
  const SafetensorsReader reader(path);
  for (const TensorEntry& entry : reader.entries()) {
    OwnedTensor tensor = zeros(is_float(entry.dtype) ? Dtype::f64 : Dtype::i64, entry.shape);
    convert(entry, tensor.get());
    tensors_.emplace(entry.name, std::move(tensor));
  }
}

const Tensor& TensorFile::get(const std::string& name) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end()) fail("test", "the file holds no " + name);
  return at->second.get();
}

ConstTensor TensorFile::find(const std::string& name) const {
  return has(name) ? ConstTensor(get(name)) : ConstTensor();
}

std::vector<std::string> TensorFile::names(const std::string& prefix) const {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : tensors_) {
    if (name.rfind(prefix, 0) == 0) out.push_back(name);
  }
  return out;
}

// ---- inputs ------------------------------------------------------------------------------------

GoldenInputs GoldenInputs::from(const TensorFile& file, const std::string& prefix) {
  const auto copy_of = [&](const char* name) {
    const ConstTensor t = file.find(prefix + name);
    return t.defined() ? cast(t, Dtype::i64) : OwnedTensor();
  };
  GoldenInputs out;
  out.input_ids = copy_of("input_ids");
  out.attention_mask = copy_of("attention_mask");
  out.position_ids = copy_of("position_ids");
  out.packed_seq_ids = copy_of("packed_seq_ids");
  out.mm_token_type_ids = copy_of("mm_token_type_ids");
  out.labels = copy_of("labels");
  return out;
}

GoldenInputs GoldenInputs::of_tokens(const std::vector<int64_t>& ids) {
  GoldenInputs out;
  const Shape shape{1, static_cast<int64_t>(ids.size())};
  out.input_ids = from_values(Dtype::i64, shape, std::vector<double>(ids.begin(), ids.end()));
  out.labels = cast(out.input_ids.get(), Dtype::i64);
  return out;
}

GoldenInputs GoldenInputs::rows(int64_t first, int64_t count) const {
  GoldenInputs out;
  for_each_tensor(*this, out, [&](const OwnedTensor& t, OwnedTensor& part) {
    if (t->defined()) part = cast(t->slice(0, first, count), Dtype::i64);
  });
  return out;
}

GoldenInputs GoldenInputs::document(int64_t row, int64_t first, int64_t count) const {
  GoldenInputs out;
  out.input_ids = cast(input_ids->slice(0, row, 1).slice(1, first, count), Dtype::i64);
  out.labels = cast(labels->slice(0, row, 1).slice(1, first, count), Dtype::i64);
  return out;
}

GoldenInputs GoldenInputs::padded(int64_t left, int64_t right) const {
  const int64_t batch = input_ids->dim(0);
  const int64_t cols = input_ids->dim(1);
  const std::vector<uint8_t> before = real();
  GoldenInputs out;
  const Shape shape{batch, left + cols + right};
  out.input_ids = zeros(Dtype::i64, shape);
  out.attention_mask = zeros(Dtype::i64, shape);
  out.position_ids = zeros(Dtype::i64, shape);
  out.labels = zeros(Dtype::i64, shape);
  fill(out.labels.get(), -100);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t s = 0; s < cols; ++s) {
      const int64_t to = b * shape[1] + left + s;
      const int64_t t = b * cols + s;
      set(out.input_ids.get(), to, at(input_ids.get(), t));
      set(out.attention_mask.get(), to, before[static_cast<size_t>(t)]);
      set(out.position_ids.get(), to, static_cast<double>(s));
      // The first token of a row is no target; behind padding it would become one.
      set(out.labels.get(), to, s == 0 ? -100.0 : at(labels.get(), t));
    }
  }
  return out;
}

gemma4::TextInputs GoldenInputs::text() const {
  return {.input_ids = input_ids.get(),
          .position_ids = position_ids.get(),
          .attention_mask = attention_mask.get(),
          .packed_seq_ids = packed_seq_ids.get(),
          .mm_token_type_ids = mm_token_type_ids.get()};
}

int64_t GoldenInputs::targets() const {
  int64_t count = 0;
  for (int64_t t = 0; t < labels->numel(); ++t) {
    if (t % labels->dim(1) != 0 && labels->as<int64_t>()[t] != -100) ++count;
  }
  return count;
}

std::vector<uint8_t> GoldenInputs::real() const {
  std::vector<uint8_t> out(static_cast<size_t>(input_ids->numel()), 1);
  for (const OwnedTensor* mask : {&attention_mask, &packed_seq_ids}) {
    for (int64_t t = 0; t < (*mask)->numel(); ++t) {
      if ((*mask)->as<int64_t>()[t] == 0) out[static_cast<size_t>(t)] = 0;
    }
  }
  return out;
}

GoldenCase::GoldenCase(const std::string& case_name)
    : name(case_name),
      directory(LAPIDARY_SOURCE_DIR "/tests/golden/data/" + case_name),
      inputs(GoldenInputs::from(TensorFile(directory + "/inputs.safetensors"))),
      expected(directory + "/expected.safetensors") {}

Gemma4ForConditionalGeneration GoldenCase::model(Dtype dtype) const {
  const bool reference = dtype == Dtype::f64 || dtype == Dtype::c128;
  return Gemma4ForConditionalGeneration::from_pretrained(
      directory, {.dtype = dtype, .backend = reference ? Backend::ref : test_backend()});
}

double GoldenCase::reference_error(const std::string& run, const std::string& metric) const {
  const std::string path = LAPIDARY_SOURCE_DIR "/tests/golden/data/bf16_reference_error.json";
  const nlohmann::json all = parse_json(read_text_file(path, 1 << 20), path);
  return all.at(name).at(run).at(metric).get<double>();
}

// ---- runs --------------------------------------------------------------------------------------

gemma4::ForwardOutput run_forward(Gemma4ForConditionalGeneration& model,
                                  const gemma4::TextInputs& inputs,
                                  const gemma4::ForwardOptions& options) {
  const MemoryPlan plan = model.plan_forward(inputs, options);
  Context ctx = Context::make(model.backend(), plan);
  ctx.activations.set_poison(true);
  ctx.scratch.set_poison(true);
  return model.forward(ctx, inputs, options);
}

double run_loss(Gemma4ForConditionalGeneration& model, const GoldenInputs& inputs,
                const gemma4::LossOptions& options) {
  const MemoryPlan plan = model.plan_loss(inputs.text(), options);
  Context ctx = Context::make(model.backend(), plan);
  ctx.activations.set_poison(true);
  ctx.scratch.set_poison(true);
  return model.loss(ctx, inputs.text(), inputs.labels.get(), options);
}

Gradients copy_gradients(Gemma4ForConditionalGeneration& model) {
  Gradients out;
  model.for_each_parameter([&](Parameter& p) {
    if (p.grad.defined()) out.emplace(p.name, to_host(model.backend(), p.grad));
  });
  return out;
}

LossAndGradients run_gradients(Gemma4ForConditionalGeneration& model, const GoldenInputs& inputs,
                               nn::Recompute policy) {
  const auto count = static_cast<double>(std::max<int64_t>(inputs.targets(), 1));
  model.zero_gradients();
  const double sum = run_loss(model, inputs, {.policy = policy, .grad_scale = 1.0 / count});
  return {sum / count, copy_gradients(model)};
}

Trajectory run_training(Gemma4ForConditionalGeneration& model, const TensorFile& train,
                        int64_t steps, const Disturb& disturb, AdamWOptions options) {
  model.zero_gradients();
  std::vector<Parameter*> parameters;
  model.for_each_parameter([&](Parameter& p) { parameters.push_back(&p); });
  options.beta1 = 0.9;
  options.beta2 = 0.95;
  options.eps = 1e-8;
  AdamW optimizer(model.backend(), options, parameters);
  Context ctx = Context::make(model.backend(), {.scratch = int64_t{1} << 20});  // sums of squares
  Trajectory out;
  for (int64_t step = 0; step < steps; ++step) {
    const GoldenInputs batch = GoldenInputs::from(train, "batch" + std::to_string(step % 4) + ".");
    const auto count = static_cast<double>(batch.targets());
    model.zero_gradients();
    const double sum = run_loss(model, batch, {.grad_scale = 1.0 / count});
    if (disturb) {
      for (Parameter* p : parameters) {
        if (p->grad.defined()) disturb(step, *p);
      }
    }
    optimizer.begin_step();
    const double norm = optimizer.grad_norm(ctx);
    optimizer.clip(ctx, 1.0);
    optimizer.step(ctx, 1e-3, 0.01);
    out.losses.push_back(sum / count);
    out.grad_norms.push_back(norm);
  }
  return out;
}

// ---- comparisons -------------------------------------------------------------------------------

TokenError token_error(const ConstTensor& got, const ConstTensor& expected,
                       const std::vector<uint8_t>& real) {
  const auto tokens = static_cast<int64_t>(real.size());
  if (got.shape() != expected.shape() || got.numel() % tokens != 0) {
    fail("test", "shapes differ: " + got.shape().str() + " and " + expected.shape().str());
  }
  const int64_t width = got.numel() / tokens;
  double peak = 0.0, error = 0.0, sum = 0.0, norm = 0.0;
  for (int64_t t = 0; t < tokens; ++t) {
    if (real[static_cast<size_t>(t)] == 0) continue;
    for (int64_t i = t * width; i < (t + 1) * width; ++i) {
      const double e = at(expected, i);
      const double difference = std::abs(at(got, i) - e);
      if (!(difference <= error)) error = difference;  // keeps NaN
      peak = std::max(peak, std::abs(e));
      sum += difference * difference;
      norm += e * e;
    }
  }
  return {error / peak, std::sqrt(sum / norm)};
}

GradientErrors gradient_errors(const Gradients& got, const TensorFile& expected) {
  GradientErrors out;
  for (const std::string& name : expected.names("grad.")) {
    const auto at = got.find(name.substr(5));
    if (at == got.end()) {
      out.missing.push_back(name);
      continue;
    }
    const double error = l2_error(at->second.get(), expected.get(name));
    out.errors.push_back(error);
    if (!(error <= out.worst)) {
      out.worst = error;
      out.worst_name = name;
    }
  }
  for (const auto& [name, gradient] : got) {
    if (!expected.has("grad." + name)) out.surplus.push_back(name);
  }
  std::vector<double> sorted = out.errors;
  std::sort(sorted.begin(), sorted.end());
  const size_t n = sorted.size();
  if (n > 0) out.median = 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]);
  return out;
}

double worst_difference(const Gradients& got, const Gradients& expected) {
  if (got.size() != expected.size()) fail("test", "different numbers of gradients");
  double worst = 0.0;
  for (const auto& [name, gradient] : expected) {
    const double error = l2_error(got.at(name).get(), gradient.get());
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

std::vector<int64_t> integers(const ConstTensor& t) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < t.numel(); ++i) out.push_back(std::llround(at(t, i)));
  return out;
}

}  // namespace lapidary::test
