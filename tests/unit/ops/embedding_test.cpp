#include "lapidary/ops/embedding.h"

#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "tests/unit/ops/against_ref.h"

namespace lapidary::test {
namespace {

struct Size {
  int64_t tokens, vocabulary, n;
};
const Size kSizes[] = {{1, 1, 1}, {0, 3, 4}, {9, 4, 33}, {200, 7, 130}, {3, 5, 0}};

TEST(CpuEmbedding, Forward) {
  Rng rng(151);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [tokens, vocabulary, n] : kSizes) {
      Call call(d, strided);
      const int ids = call.integers(random_int(Dtype::i64, {tokens}, rng, 0, vocabulary));
      const int table = call.input(random(Dtype::f64, {vocabulary, n}, rng));
      const int y = call.written("y", {tokens, n}, tolerance(d));
      call.compare([=](Context& ctx, const Call::Args& t) {
        ops::embedding(ctx, {.ids = t[ids], .table = t[table], .scale = 50.5, .y = t[y]});
      });
    }
  });
}

// Few rows for many tokens: each row is added to often.
TEST(CpuEmbedding, Backward) {
  Rng rng(152);
  for_each_form([&](Dtype d, bool strided) {
    for (const auto& [tokens, vocabulary, n] : kSizes) {
      for (const int64_t pad : {-1, 0}) {
        Call call(d, strided);
        const int ids = call.integers(random_int(Dtype::i64, {tokens}, rng, 0, vocabulary));
        const int dy = call.input(random(Dtype::f64, {tokens, n}, rng));
        const int dtable = call.added_acc("dtable", random(Dtype::f64, {vocabulary, n}, rng),
                                          tolerance(Dtype::f32, tokens));
        call.compare([=](Context& ctx, const Call::Args& t) {
          ops::embedding_bwd(
              ctx, {.ids = t[ids], .dy = t[dy], .scale = 7.5, .skip_id = pad, .dtable = t[dtable]});
        });
      }
    }
  });
}

TEST(CpuEmbedding, RefusesForeignIds) {
  Context ctx = Context::make(Backend::cpu);
  const OwnedTensor table = zeros(Dtype::f32, {4, 2}), y = zeros(Dtype::f32, {1, 2});
  for (const double id : {-1.0, 4.0, 1e15}) {
    const OwnedTensor ids = from_values(Dtype::i64, {1}, {id});
    EXPECT_THROW(ops::embedding(ctx, {.ids = ids.get(), .table = table.get(), .y = y.get()}),
                 Error);
    EXPECT_THROW(ops::embedding_bwd(
                     ctx, {.ids = ids.get(), .dy = y.get(), .skip_id = 0, .dtable = table.get()}),
                 Error);
  }
}

}  // namespace
}  // namespace lapidary::test
