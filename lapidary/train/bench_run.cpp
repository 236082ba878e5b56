#include "lapidary/train/bench_run.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "lapidary/core/rng.h"

namespace lapidary {
namespace {

// Work shorter than this is issued several times between two looks at the clock.
constexpr double kBriefSeconds = 2e-3;
constexpr int64_t kMaxIssued = 200;
// Values of a random tensor repeat after a prime number of them: no two rows of a matrix are equal,
// and filling gigabytes takes no longer than copying them.
constexpr int64_t kPattern = 1000003;

int64_t peak_bytes(Backend backend) {
  if (backend == Backend::cuda) return gpu::peak_bytes();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

// Of sorted values, between neighbours.
double quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], at - std::floor(at));
}

BenchTimes times_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const auto ms = [&](double q) { return 1e3 * quantile(seconds, q); };
  return {.median = ms(0.5), .min = ms(0.0), .max = ms(1.0), .p10 = ms(0.1), .p90 = ms(0.9)};
}

// Seconds of `count` runs without a look at the clock between them.
double seconds_of(Context& ctx, int64_t count, const std::function<void(Context&)>& work) {
  bench_synchronize(ctx);
  const double start = bench_seconds();
  for (int64_t i = 0; i < count; ++i) work(ctx);
  bench_synchronize(ctx);
  return bench_seconds() - start;
}

}  // namespace

double bench_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void bench_synchronize(const Context& ctx) {
  if (ctx.backend == Backend::cuda) gpu::synchronize(ctx.stream);
}

void BenchRun::measure(const BenchLine& part, Length length,
                       const std::function<void(Context&)>& work) {
  Context meta = Context::meta(options.backend);
  work(meta);
  measure(part, length, meta.plan(), work);
}

void BenchRun::measure(const BenchLine& part, Length length, const MemoryPlan& plan,
                       const std::function<void(Context&)>& work) {
  Context ctx = Context::make(options.backend, plan);
  seconds_of(ctx, 1, work);
  const double once = std::max(seconds_of(ctx, 1, work), 1e-7);
  int64_t issued = 1;
  if (length == Length::brief) {
    issued = std::clamp<int64_t>(std::llround(kBriefSeconds / once), 1, kMaxIssued);
  }
  std::vector<double> seconds;
  for (int64_t i = 0; i < options.repeat; ++i) {
    seconds.push_back(seconds_of(ctx, issued, work) / static_cast<double>(issued));
  }
  BenchLine line = part;
  line.activation_bytes = plan.activations;
  line.scratch_bytes = plan.scratch;
  if (options.profile) {
    Profiler profiler;
    ctx.profiler = &profiler;
    work(ctx);
    bench_synchronize(ctx);
    for (const auto& [op, entry] : profiler.entries()) line.op_ms[op] = 1e3 * entry.seconds;
  }
  add(std::move(line), std::move(seconds));
}

void BenchRun::add(BenchLine line, std::vector<double> seconds) {
  line.ms = times_of(std::move(seconds));
  line.peak_bytes = peak_bytes(options.backend);
  lines.push_back(std::move(line));
}

OwnedTensor BenchRun::random(Dtype dtype, const Shape& shape, double deviation) const {
  OwnedTensor out(options.backend, dtype, shape);
  const int64_t count = shape.numel();
  const int64_t length = std::min(count, kPattern);
  if (count == 0) return out;
  OwnedTensor pattern(Backend::cpu, dtype, {length});
  Rng rng(7, static_cast<uint64_t>(count));
  for (int64_t i = 0; i < length; ++i) {
    const auto value = static_cast<float>(deviation * rng.normal());
    if (dtype == Dtype::bf16)
      pattern->as<bf16>()[i] = bf16(value);
    else
      pattern->as<float>()[i] = value;
  }
  Context ctx = Context::make(options.backend);
  const Tensor flat = out->view({count});
  for (int64_t at = 0; at < count; at += length) {
    const int64_t piece = std::min(length, count - at);
    upload(ctx, pattern->slice(0, 0, piece), flat.slice(0, at, piece));
  }
  bench_synchronize(ctx);
  return out;
}

OwnedTensor BenchRun::on_backend(const ConstTensor& host) const {
  OwnedTensor out(options.backend, host.dtype(), host.shape());
  Context ctx = Context::make(options.backend);
  upload(ctx, host, out.get());
  bench_synchronize(ctx);
  return out;
}

std::vector<int64_t> BenchRun::random_ids(int64_t count, int64_t vocabulary) const {
  std::vector<int64_t> ids(static_cast<size_t>(count));
  const int64_t first = text.pad_token_id.value_or(0) == 0 && vocabulary > 1 ? 1 : 0;
  Rng rng(3);
  for (int64_t& id : ids) id = first + rng.below(vocabulary - first);
  return ids;
}

}  // namespace lapidary
