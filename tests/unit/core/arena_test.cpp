#include "lapidary/core/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "lapidary/core/context.h"
#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"

namespace lapidary {
namespace {

int64_t address(const Tensor& t) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(t.data()));
}

TEST(Arena, GivesAlignedPiecesInOrder) {
  Arena arena("test", Backend::cpu, 1024);
  const Tensor a = arena.alloc(Dtype::f32, {3});
  const Tensor b = arena.alloc(Dtype::u8, {65});
  const Tensor c = arena.alloc(Dtype::f64, {2, 4});
  EXPECT_EQ(address(a) % 64, 0);
  EXPECT_EQ(address(b) - address(a), 64);
  EXPECT_EQ(address(c) - address(b), 128);
  EXPECT_EQ(arena.mark(), 256);
  EXPECT_TRUE(c.shape() == (Shape{2, 4}));
  EXPECT_EQ(c.dtype(), Dtype::f64);
  EXPECT_TRUE(c.contiguous());
}

TEST(Arena, RewindReusesAndPeakStays) {
  Arena arena("test", Backend::cpu, 1024);
  arena.alloc(Dtype::u8, {64});
  const int64_t mark = arena.mark();
  const Tensor first = arena.alloc(Dtype::u8, {640});
  arena.rewind(mark);
  EXPECT_EQ(arena.peak(), 704);
  const Tensor second = arena.alloc(Dtype::u8, {64});
  EXPECT_EQ(first.data(), second.data());
  EXPECT_EQ(arena.mark(), 128);
  EXPECT_EQ(arena.peak(), 704);
}

TEST(Arena, ScopesNest) {
  Arena arena("test", Backend::cpu, 1024);
  arena.alloc(Dtype::u8, {64});
  {
    const ArenaScope outer(arena);
    arena.alloc(Dtype::u8, {64});
    {
      const ArenaScope inner(arena);
      arena.alloc(Dtype::u8, {64});
      EXPECT_EQ(arena.mark(), 192);
    }
    EXPECT_EQ(arena.mark(), 128);
  }
  EXPECT_EQ(arena.mark(), 64);
  EXPECT_EQ(arena.peak(), 192);
}

TEST(Arena, FullIsAnErrorThatChangesNothing) {
  Arena arena("scratch", Backend::cpu, 256);
  arena.alloc(Dtype::u8, {128});
  EXPECT_THAT(
      [&] {
        arena.alloc(Dtype::f32, {5, 7});
      },
      testing::ThrowsMessage<Error>(testing::AllOf(
          testing::HasSubstr("scratch arena"), testing::HasSubstr("128 of 256 bytes"),
          testing::HasSubstr("192 more"), testing::HasSubstr("[5, 7]"))));
  EXPECT_EQ(arena.mark(), 128);
  EXPECT_EQ(arena.peak(), 128);
  EXPECT_NO_THROW(arena.alloc(Dtype::u8, {128})) << "the last byte can be had";
  EXPECT_THROW(arena.alloc(Dtype::u8, {1}), Error);
  EXPECT_NO_THROW(arena.alloc(Dtype::u8, {0}));
}

TEST(Arena, CountingTakesNoMemory) {
  Arena arena("plan", Backend::meta, Arena::kCounting);
  const int64_t tebibyte = int64_t{1} << 40;
  const Tensor t = arena.alloc(Dtype::bf16, {tebibyte, 8});
  EXPECT_EQ(t.data(), nullptr);
  EXPECT_TRUE(t.defined());
  EXPECT_EQ(arena.peak(), 16 * tebibyte);
  arena.rewind(0);
  arena.alloc(Dtype::u8, {1});
  EXPECT_EQ(arena.mark(), 64);
  EXPECT_EQ(arena.peak(), 16 * tebibyte);
}

// The plan that a counting arena measures is just enough for a real one.
TEST(Arena, CountedCapacitySuffices) {
  const auto use = [](Arena& arena) {
    arena.alloc(Dtype::f32, {33});
    const ArenaScope scope(arena);
    arena.alloc(Dtype::f64, {3, 5});
    arena.alloc(Dtype::u8, {1});
  };
  Arena plan("plan", Backend::meta, Arena::kCounting);
  use(plan);
  Arena exact("exact", Backend::cpu, plan.peak());
  EXPECT_NO_THROW(use(exact));
  Arena small("small", Backend::cpu, plan.peak() - 1);
  EXPECT_THROW(use(small), Error);
}

TEST(Arena, PoisonReadsAsNan) {
  Arena arena("test", Backend::cpu, 1024);
  const Tensor clean = arena.alloc(Dtype::f32, {4});
  std::memset(clean.data(), 0, 16);
  arena.rewind(0);
  arena.set_poison(true);
  const Tensor t = arena.alloc(Dtype::f32, {4});
  EXPECT_EQ(t.data(), clean.data());
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(std::isnan(t.as<float>()[i]));
  EXPECT_TRUE(std::isnan(static_cast<float>(arena.alloc(Dtype::bf16, {1}).as<bf16>()[0])));
}

TEST(Arena, ContextsHaveTwo) {
  Context ctx = Context::make(Backend::cpu, {256, 128});
  EXPECT_EQ(ctx.activations.capacity(), 256);
  EXPECT_EQ(ctx.scratch.capacity(), 128);
  EXPECT_THAT([&] { ctx.activations.alloc(Dtype::u8, {257}); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("activation arena")));
  Context meta = Context::meta();
  EXPECT_EQ(meta.backend, Backend::meta);
  EXPECT_EQ(meta.scratch.alloc(Dtype::f32, {1000}).data(), nullptr);
}

TEST(Buffer, IsZeroFilledAlignedAndMoves) {
  Buffer a(Backend::cpu, 100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0U);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(static_cast<char*>(a.data())[i], 0);
  void* data = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.bytes(), 100);
  Buffer c;
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(Buffer(Backend::cpu, 0).data(), nullptr);
}

TEST(Buffer, MetaOwnsNothing) {
  const Buffer meta(Backend::meta, int64_t{1} << 50);
  EXPECT_EQ(meta.data(), nullptr);
  EXPECT_EQ(meta.bytes(), int64_t{1} << 50);
}

TEST(Buffer, OnAGpuThatIsNotThere) {
  if (gpu::unavailable().empty()) GTEST_SKIP() << "there is a GPU";
  EXPECT_THROW(Buffer(Backend::cuda, 16), Error);
  EXPECT_THROW(Buffer(Backend::pinned, 16), Error);
}

TEST(Buffer, OwnedTensorMovesWithItsView) {
  OwnedTensor a(Backend::cpu, Dtype::f64, {2, 3});
  a.get().as<double>()[5] = 7.0;
  const OwnedTensor b(std::move(a));
  EXPECT_EQ(b->as<double>()[5], 7.0);
  EXPECT_EQ(b->bytes(), 48);
}

// The sanitizers' allocators abort on absurd sizes instead of saying no.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LAPIDARY_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define LAPIDARY_SANITIZED
#endif
#endif
#ifndef LAPIDARY_SANITIZED
TEST(Buffer, NoMemoryIsAnError) {
  EXPECT_THAT([] { Buffer(Backend::cpu, int64_t{1} << 60); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("no memory")));
}
#endif

}  // namespace
}  // namespace lapidary
