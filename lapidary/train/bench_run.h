#pragma once

#include <functional>

#include "lapidary/core/transfer.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/train/bench.h"

namespace lapidary {

// The state of one benchmark: makes tensors, times work, collects lines.
class BenchRun {
 public:
  BenchRun(const BenchOptions& of, const gemma4::Config& model)
      : options(of), config(model), text(model.text) {}

  // Runs `work` dry for its memory plan, then in a context of that size until it is warm, then
  // `repeat` times. `brief`: work that may be issued several times between two looks at the clock,
  // for it leaves alone what it reads.
  enum class Length { brief, whole };
  void measure(const BenchLine& part, Length length, const std::function<void(Context&)>& work);
  // For work that has no dry run of its own.
  void measure(const BenchLine& part, Length length, const MemoryPlan& plan,
               const std::function<void(Context&)>& work);
  // A line with the given seconds per repetition.
  void add(BenchLine line, std::vector<double> seconds);

  OwnedTensor random(Dtype dtype, const Shape& shape, double deviation = 1.0) const;
  OwnedTensor random(const Shape& shape, double deviation = 1.0) const {
    return random(options.dtype, shape, deviation);
  }
  OwnedTensor zeros(const Shape& shape) const { return {options.backend, options.dtype, shape}; }
  OwnedTensor zeros(Dtype dtype, const Shape& shape) const {
    return {options.backend, dtype, shape};
  }
  // Of the gradients of parameters.
  OwnedTensor zero_sums(const Shape& shape) const {
    return zeros(accumulate_dtype(options.dtype), shape);
  }
  OwnedTensor on_backend(const ConstTensor& host) const;
  // Tokens below `vocabulary`, on the host; never the padding.
  std::vector<int64_t> random_ids(int64_t count, int64_t vocabulary) const;

  int64_t tokens() const { return options.batch * options.seq; }
  double width() const { return static_cast<double>(size_of(options.dtype)); }
  gemma4::Gemma4ForConditionalGeneration random_model(const gemma4::Config& of) const {
    return gemma4::Gemma4ForConditionalGeneration::from_config(
        of, {.dtype = options.dtype, .backend = options.backend});
  }

  const BenchOptions& options;
  const gemma4::Config& config;
  const gemma4::TextConfig& text;
  std::vector<BenchLine> lines;
};

double bench_seconds();  // of a steady clock
void bench_synchronize(const Context& ctx);

// The configuration with its first `layers` layers, the last of which must be a full one; with
// vocabularies of at most `vocabulary` entries (0: as they are) and a tied head.
gemma4::Config shortened_config(const gemma4::Config& config, int64_t layers, int64_t vocabulary);
// Layers up to the first full one: a cycle of all published sizes.
int64_t period_of(const gemma4::TextConfig& text);

void bench_period(BenchRun& run);
void bench_step(BenchRun& run);
void bench_decode(BenchRun& run);
void bench_head(BenchRun& run);
void bench_attention(BenchRun& run);
void bench_experts(BenchRun& run);
void bench_gemm(BenchRun& run);

}  // namespace lapidary
