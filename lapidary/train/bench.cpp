#include "lapidary/train/bench.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"
#include "lapidary/ops/matmul.h"
#include "lapidary/train/bench_run.h"

namespace lapidary {
namespace {

struct Named {
  const char* name;
  void (*run)(BenchRun&);
};
constexpr Named kBenches[] = {{"period", bench_period},   {"head", bench_head},
                              {"step", bench_step},       {"attention", bench_attention},
                              {"experts", bench_experts}, {"gemm", bench_gemm},
                              {"decode", bench_decode}};

std::string device_name(Backend backend) {
  if (backend == Backend::cuda) return gpu::device().name;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "cpu";
}

// What the device reaches on the plainest work, timed as everything else is.
void measure_rates(const BenchOptions& options, const gemma4::Config& config, BenchReport& report) {
  const bool gpu = options.backend == Backend::cuda;
  BenchRun run(options, config);
  {
    const int64_t n = !gpu ? 1024 : options.dtype == Dtype::bf16 ? 8192 : 4096;
    const OwnedTensor a = run.random({n, n}), b = run.random({n, n}), out = run.zeros({n, n});
    run.measure({}, BenchRun::Length::brief, [&](Context& ctx) {
      ops::matmul(ctx, {.a = a.get(), .b = b.get(), .out = out.get(), .trans_b = true});
    });
    report.matmul_rate = 2e3 * std::pow(static_cast<double>(n), 3.0) / run.lines.back().ms.median;
  }
  const int64_t bytes = int64_t{1} << (gpu ? 30 : 26);
  const OwnedTensor from(options.backend, Dtype::u8, {bytes}),
      to(options.backend, Dtype::u8, {bytes});
  run.measure({}, BenchRun::Length::brief,
              [&](Context& ctx) { copy_bytes(ctx, to->data(), from->data(), bytes); });
  report.copy_rate = 2e3 * static_cast<double>(bytes) / run.lines.back().ms.median;
}

// Four significant digits: what lies beyond is noise.
double rounded(double value) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const double unit = std::pow(10.0, std::floor(std::log10(std::abs(value))) - 3.0);
  return unit >= 1.0 ? std::round(value / unit) * unit
                     : std::round(value / unit) / std::round(1.0 / unit);
}

}  // namespace

std::vector<std::string> bench_names() {
  std::vector<std::string> out;
  for (const Named& bench : kBenches) out.emplace_back(bench.name);
  return out;
}

BenchReport run_bench(const BenchOptions& options) {
  const gemma4::Config config = gemma4::load_config(options.config);
  BenchReport report;
  report.device = device_name(options.backend);
  BenchRun run(options, config);
  for (const Named& bench : kBenches) {
    if (options.what == bench.name) bench.run(run);
  }
  if (run.lines.empty()) fail("bench", "there is no benchmark \"" + options.what + "\"");
  report.lines = std::move(run.lines);
  measure_rates(options, config, report);  // last: its memory is not the benchmark's peak
  return report;
}

std::string to_json(const BenchOptions& options, const BenchReport& report, const BenchLine& line) {
  const double seconds = line.ms.median / 1e3;
  nlohmann::ordered_json out = {
      {"what", options.what},
      {"part", line.part},
      {"config", options.config},
      {"backend", name_of(options.backend)},
      {"device", report.device},
      {"dtype", name_of(options.dtype)},
      {"batch", options.batch},
      {options.what == "decode" ? "prompt" : "seq",
       options.what == "decode" ? options.prompt : options.seq},
      {"shape", line.shape},
      {"recompute", nn::name_of(options.recompute)},
      {"repeat", options.repeat},
      {"ms", rounded(line.ms.median)},
      {"ms_min", rounded(line.ms.min)},
      {"ms_max", rounded(line.ms.max)},
      {"ms_p10", rounded(line.ms.p10)},
      {"ms_p90", rounded(line.ms.p90)},
      {"tflops", rounded(line.flops / seconds / 1e12)},
      {"gb_per_s", rounded(line.bytes / seconds / 1e9)},
      {"tokens_per_s", rounded(line.tokens / seconds)},
      {"matmul_tflops", rounded(report.matmul_rate / 1e12)},
      {"share_of_matmul", rounded(line.flops / seconds / report.matmul_rate)},
      {"copy_gb_per_s", rounded(report.copy_rate / 1e9)},
      {"share_of_copy", rounded(line.bytes / seconds / report.copy_rate)},
      {"peak_bytes", line.peak_bytes},
      {"activation_bytes", line.activation_bytes},
      {"scratch_bytes", line.scratch_bytes}};
  if (options.profile) {
    for (const auto& [op, ms] : line.op_ms) out["op_ms"][op] = rounded(ms);
  }
  return out.dump();
}

}  // namespace lapidary
