#include "lapidary/ops/random.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>

#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"
#include "lapidary/core/transfer.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

constexpr uint64_t kSeed = 0x123456789abcdefU, kStream = 0xfedcba9876543210U;

// One number after the other.
OwnedTensor in_order(Dtype dtype, const Shape& shape, double mean, double deviation) {
  OwnedTensor out = zeros(dtype, shape);
  Rng rng(kSeed, kStream);
  for (int64_t i = 0; i < out->numel(); ++i) {
    const double value = mean + deviation * rng.normal();
    // The element types of models are reached by way of float.
    const bool narrow = dtype == Dtype::f32 || dtype == Dtype::bf16;
    set(out.get(), i, narrow ? static_cast<double>(static_cast<float>(value)) : value);
  }
  return out;
}

ops::FillNormalArgs args(const Tensor& t, double mean, double deviation) {
  return {.t = t, .mean = mean, .deviation = deviation, .seed = kSeed, .stream = kStream};
}

OwnedTensor filled(Backend backend, Dtype dtype, const Shape& shape, double mean,
                   double deviation) {
  OwnedTensor out = poisoned(dtype, shape);
  Context ctx = Context::make(backend);
  ops::fill_normal(ctx, args(out.get(), mean, deviation));
  return out;
}

const Shape kShapes[] = {{1}, {0, 3}, {37}, {3, 4095}, {5, 7, 1111}};

TEST(Random, FillsInTheOrderOfTheStream) {
  for (const Dtype d : {Dtype::f32, Dtype::bf16, Dtype::f64, Dtype::c128}) {
    const bool narrow = d == Dtype::f32 || d == Dtype::bf16;
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(std::string(name_of(d)) + shape.str());
      const OwnedTensor got = filled(narrow ? Backend::cpu : Backend::ref, d, shape, 0.25, 0.02);
      EXPECT_TRUE(same_bits(got.get(), in_order(d, shape, 0.25, 0.02).get()));
    }
  }
}

TEST(Random, TheNumberOfThreadsDoesNotShow) {
  const int threads = omp_get_max_threads();
  const OwnedTensor expected = in_order(Dtype::f32, {50000}, 0.0, 1.0);
  for (const int n : {1, 2, 3, 7}) {
    omp_set_num_threads(n);
    const OwnedTensor got = filled(Backend::cpu, Dtype::f32, {50000}, 0.0, 1.0);
    EXPECT_TRUE(same_bits(got.get(), expected.get())) << n << " threads";
  }
  omp_set_num_threads(threads);
}

TEST(Random, WithoutDeviationAllIsTheMean) {
  const OwnedTensor got = filled(Backend::cpu, Dtype::bf16, {9000}, 1.0, 0.0);
  for (const double v : values(got.get())) ASSERT_EQ(v, 1.0);
}

TEST(Random, AgainstTheReference) {
  for (const Dtype d : {Dtype::f32, Dtype::bf16}) {
    for (const Shape& shape : kShapes) {
      Call call(d, false);
      const int t = call.written("t", shape, tolerance(d));
      call.compare([=](Context& ctx, const Call::Args& tensors) {
        ops::fill_normal(ctx, args(tensors[t], -0.5, 3.0));
      });
    }
  }
}

TEST(Random, RefusesGapsBetweenRows) {
  const OwnedTensor t = zeros(Dtype::f32, {4, 6});
  Context ctx = Context::make(Backend::cpu);
  EXPECT_THROW(ops::fill_normal(ctx, args(t->slice(1, 0, 3), 0.0, 1.0)), Error);
}

// The bits of a float or bf16 as an integer that grows with the number: neighbours differ by one.
int64_t place(const ConstTensor& t, int64_t i) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(at(t, i)));
  const auto size = static_cast<int64_t>(bits & 0x7fffffffU) >> (t.dtype() == Dtype::bf16 ? 16 : 0);
  return bits >> 31 != 0 ? -size : size;
}

TEST(CudaRandom, WithinOneUnitInTheLastPlace) {
  if (!gpu::unavailable().empty()) GTEST_SKIP() << gpu::unavailable();
  for (const Dtype d : {Dtype::f32, Dtype::bf16}) {
    for (const int64_t n : {1, 37, 1000003}) {
      Context ctx = Context::make(Backend::cuda);
      const OwnedTensor gpu(Backend::cuda, d, {n});
      ops::fill_normal(ctx, args(gpu.get(), 0.0, 0.02));
      const OwnedTensor got = to_host(Backend::cuda, gpu.get());
      const OwnedTensor expected = filled(Backend::cpu, d, {n}, 0.0, 0.02);
      int64_t worst = 0;
      for (int64_t i = 0; i < n; ++i) {
        worst = std::max(worst, std::abs(place(got.get(), i) - place(expected.get(), i)));
      }
      EXPECT_LE(worst, 1) << name_of(d) << " " << n;
    }
  }
}

}  // namespace
}  // namespace lapidary::test
