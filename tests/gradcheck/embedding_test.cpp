#include "lapidary/ops/embedding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "tests/gradcheck/complex_step.h"

namespace lapidary::test {
namespace {

class Embedding : public testing::Test {
 protected:
  Context ctx = ref_context();
  Rng rng{71, 1};
  // Repeated ids, the first and the last row, and rows that nobody looks up.
  OwnedTensor ids = from_values(Dtype::i64, {6}, {3, 0, 3, 6, 1, 0});
  OwnedTensor table = random(Dtype::f64, {7, 5}, rng);
};

TEST_F(Embedding, GradientMatchesComplexStep) {
  std::vector<Variable> in = variables(added("table", cast(table.get(), Dtype::f64), rng));
  const Forward forward = [&](Dtype d, const std::vector<ConstTensor>& x) {
    Tensors out;
    out.push_back(poisoned(d, {6, 5}));
    ops::embedding(ctx, {.ids = ids.get(), .table = x[0], .scale = 1.75, .y = out[0].get()});
    return out;
  };
  Tensors dy;
  dy.push_back(random(Dtype::f64, {6, 5}, rng));
  ops::embedding_bwd(
      ctx, {.ids = ids.get(), .dy = dy[0].get(), .scale = 1.75, .dtable = in[0].grad.get()});
  expect_gradients(in, dy, forward, rng);
}

TEST_F(Embedding, PadRowGetsNothing) {
  const OwnedTensor dy = random(Dtype::f64, {6, 5}, rng);
  const OwnedTensor all = zeros(Dtype::f64, {7, 5}), padded = zeros(Dtype::f64, {7, 5});
  const Spread sdy = spread(dy.get()), wide = spread(padded.get());
  ops::embedding_bwd(ctx, {.ids = ids.get(), .dy = dy.get(), .dtable = all.get()});
  ops::embedding_bwd(ctx, {.ids = ids.get(), .dy = sdy.view, .skip_id = 0, .dtable = wide.view});
  EXPECT_GT(max_error(all->slice(0, 0, 1), padded->slice(0, 0, 1)), 0.1);
  EXPECT_TRUE(same_bits(wide.view.slice(0, 0, 1), padded->slice(0, 0, 1)));
  EXPECT_TRUE(same_bits(wide.view.slice(0, 1, 6), all->slice(0, 1, 6)));
}

TEST_F(Embedding, LooksUpAndScales) {
  const OwnedTensor y = poisoned(Dtype::f64, {6, 5});
  ops::embedding(ctx, {.ids = ids.get(), .table = table.get(), .scale = 53.0, .y = y.get()});
  for (int64_t i = 0; i < 30; ++i) {
    const auto id = static_cast<int64_t>(at(ids.get(), i / 5));
    EXPECT_EQ(at(y.get(), i), 53.0 * at(table.get(), id * 5 + i % 5));
  }
}

TEST_F(Embedding, NamesTheIdThatIsOutside) {
  const OwnedTensor y = poisoned(Dtype::f64, {6, 5});
  for (const int64_t bad : {int64_t{7}, int64_t{-1}, int64_t{1} << 40}) {
    set(ids.get(), 4, static_cast<double>(bad));
    const auto names_it = testing::AllOf(testing::HasSubstr("id " + std::to_string(bad)),
                                         testing::HasSubstr("position 4"));
    EXPECT_THAT(
        [&] { ops::embedding(ctx, {.ids = ids.get(), .table = table.get(), .y = y.get()}); },
        testing::ThrowsMessage<Error>(names_it));
    EXPECT_THAT(
        [&] {
          ops::embedding_bwd(
              ctx, {.ids = ids.get(), .dy = y.get(), .skip_id = 0, .dtable = table.get()});
        },
        testing::ThrowsMessage<Error>(names_it));
  }
}

}  // namespace
}  // namespace lapidary::test
