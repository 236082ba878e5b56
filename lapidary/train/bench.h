#pragma once

#include <map>
#include <string>
#include <vector>

#include "lapidary/core/device.h"
#include "lapidary/core/dtype.h"
#include "lapidary/nn/recompute.h"

// Times of parts of a model at their real width, with random weights.
namespace lapidary {

struct BenchOptions {
  std::string what;    // one of bench_names()
  std::string config;  // as gemma4::load_config takes it
  Backend backend = Backend::cpu;
  Dtype dtype = Dtype::bf16;
  int64_t batch = 1, seq = 4096;
  int64_t repeat = 10;
  int64_t layers = 0;                             // step, decode: the first so many; 0: all
  int64_t prompt = 512;                           // decode
  nn::Recompute recompute = nn::Recompute::none;  // period, step
  // step: as the recipe's optimizer.state_dtype, optimizer.master_weights, optimizer_in_bwd and
  // clip_grad_norm.max_norm
  std::string state_dtype = "fp32";
  bool master_weights = true;
  bool optimizer_in_bwd = false;
  double max_grad_norm = 1.0;
  bool profile = false;  // times every operation of one more repetition
};

// Milliseconds of one repetition.
struct BenchTimes {
  double median = 0.0, min = 0.0, max = 0.0, p10 = 0.0, p90 = 0.0;
};

// One thing that was timed.
struct BenchLine {
  std::string part;     // "forward", "sliding.q_proj wgrad", ...
  std::string shape;    // of its operands
  double flops = 0.0;   // see gemma4::Cost
  double bytes = 0.0;   // that must be read or written at least once: operands, weights
  double tokens = 0.0;  // of one repetition
  BenchTimes ms = {};
  int64_t peak_bytes = 0;        // of the process so far: GPU memory, or resident on a cpu
  int64_t activation_bytes = 0;  // arenas that this part needs
  int64_t scratch_bytes = 0;
  std::map<std::string, double> op_ms = {};  // with BenchOptions::profile
};

struct BenchReport {
  std::string device;
  std::vector<BenchLine> lines;
  // What the device reaches in the same process: a square matmul (FLOP/s) and a copy (bytes/s, read
  // and written).
  double matmul_rate = 0.0, copy_rate = 0.0;
};

std::vector<std::string> bench_names();
// Errors: no such configuration, layers that the model lacks, experts of a model without.
BenchReport run_bench(const BenchOptions& options);
// One line of JSON without its newline.
std::string to_json(const BenchOptions& options, const BenchReport& report, const BenchLine& line);

}  // namespace lapidary
