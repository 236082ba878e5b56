#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "lapidary/models/gemma4/text_block.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"

// A decoder layer whose experts are dealt to ranks: the dense MLP runs while rows travel, and the
// results are those of one rank.
namespace lapidary::test {
namespace {

using gemma4::Gemma4DecoderLayer;
using nn::Recompute;

struct Results {
  OwnedTensor y, dx;
  std::map<std::string, OwnedTensor> gradients = {};
};

class DecoderLayerOnRanks : public testing::TestWithParam<int64_t> {
 protected:
  static constexpr int64_t kLayer = 1;

  // Values of the model, gradients of their own; of the experts only those of this rank.
  static void allocate(Gemma4ForConditionalGeneration& model, Gemma4DecoderLayer& layer,
                       Results& out) {
    const Interval here = layer.moe().parallel.experts();
    layer.visit([&](Parameter& p) {
      p.value = model.parameter(p.name).value;
      if (p.placement == Placement::expert) p.value = p.value.slice(0, here.begin, here.size());
      if (p.buffer) return;
      p.grad =
          out.gradients.emplace(p.name, zeros(accumulate_dtype(p.value.dtype()), p.value.shape()))
              .first->second.get();
    });
  }
  static void pass(Context& ctx, const Gemma4DecoderLayer& layer, Recompute policy,
                   Gemma4DecoderLayer::Io io, const ConstTensor& dy, const Tensor& dx) {
    nn::Routing routing = layer.moe().alloc_routing(ctx, io.x.dim(0), io.dtype);
    io.routing = &routing;
    Gemma4DecoderLayer::Saved saved;
    const int64_t mark = ctx.activations.mark();
    layer.forward(ctx, policy, io, saved);
    if (policy == Recompute::block) {
      ctx.activations.rewind(mark);
      layer.forward(ctx, policy, io, saved);
    }
    layer.backward(ctx, io, {.dy = dy, .dx = dx}, saved);
  }
  // One row of the golden case through one layer.
  static Results run(const GoldenCase& golden, Dtype dtype, Recompute policy, ProcessGroup* group,
                     int64_t row) {
    Gemma4ForConditionalGeneration model = golden.model(dtype);
    const GoldenInputs inputs = golden.inputs.rows(row, 1);
    Context before = Context::make(model.backend(), model.plan_forward(inputs.text()));
    model.forward(before, inputs.text(), {});
    const auto& from = model.last_pass();
    Gemma4DecoderLayer layer(model.config().prefix() + "layers." + std::to_string(kLayer),
                             model.config().text, kLayer, group);
    const ConstTensor x = from.x[kLayer];
    Rng rng(60, static_cast<uint64_t>(row));
    const OwnedTensor dy = cast(random(Dtype::f64, x.shape(), rng).get(), x.dtype());
    Results out{.y = poisoned(x.dtype(), x.shape()), .dx = poisoned(x.dtype(), x.shape())};
    allocate(model, layer, out);
    const Gemma4DecoderLayer::Io io{.plan = &from.plans[0],
                                    .rows = 1,
                                    .x = x,
                                    .dtype = dtype,
                                    .token_valid = from.inputs.token_valid,
                                    .y = out.y.get()};
    Context meta = Context::meta(model.backend());
    pass(meta, layer, policy, io, dy.get(), out.dx.get());
    Context ctx = Context::make(model.backend(), meta.plan());
    ctx.activations.set_poison(true);
    ctx.scratch.set_poison(true);
    pass(ctx, layer, policy, io, dy.get(), out.dx.get());
    EXPECT_EQ(ctx.scratch.mark(), 0);
    return out;
  }
  static std::vector<Results> run_all(const GoldenCase& golden, int64_t ranks, Dtype dtype,
                                      Recompute policy) {
    std::vector<Results> out(static_cast<size_t>(ranks));
    run_ranks(ranks, [&](int64_t rank, const SplitWorld& split) {
      const auto group = split(0, "ep");
      out[static_cast<size_t>(rank)] =
          run(golden, dtype, policy, group.get(), rank % golden.inputs.input_ids->dim(0));
    });
    return out;
  }
  const GoldenCase golden_{"moe_text"};
};

TEST_P(DecoderLayerOnRanks, EqualsOneRank) {
  const int64_t ranks = GetParam();
  const auto many = run_all(golden_, ranks, Dtype::f64, Recompute::none);
  std::map<std::string, OwnedTensor> experts;  // of all rows
  for (int64_t r = 0; r < ranks; ++r) {
    const Results& mine = many[static_cast<size_t>(r)];
    const int64_t row = r % golden_.inputs.input_ids->dim(0);
    const Results one = run(golden_, Dtype::f64, Recompute::none, nullptr, row);
    EXPECT_LT(peak_error(mine.y.get(), one.y.get()), 1e-13);
    EXPECT_LT(peak_error(mine.dx.get(), one.dx.get()), 1e-13);
    for (const auto& [name, grad] : one.gradients) {
      if (name.find(".experts.") == std::string::npos) {
        EXPECT_LT(peak_error(mine.gradients.at(name).get(), grad.get()), 1e-12) << name;
        continue;
      }
      OwnedTensor& sum =
          experts.try_emplace(name, zeros(grad->dtype(), grad->shape())).first->second;
      for (int64_t i = 0; i < sum->numel(); ++i) {
        set(sum.get(), i, at(sum.get(), i) + at(grad.get(), i));
      }
    }
  }
  ASSERT_EQ(experts.size(), 2U);
  for (const auto& [name, grad] : experts) {
    for (int64_t r = 0; r < ranks; ++r) {
      const Interval here = dealt(grad->dim(0), ranks, r);
      EXPECT_LT(max_error(many[static_cast<size_t>(r)].gradients.at(name).get(),
                          grad->slice(0, here.begin, here.size())),
                1e-12)
          << name;
    }
  }
}

TEST_P(DecoderLayerOnRanks, PoliciesGiveTheSameBits) {
  const auto kept = run_all(golden_, GetParam(), Dtype::bf16, Recompute::none);
  for (const Recompute policy : {Recompute::light, Recompute::block}) {
    const auto again = run_all(golden_, GetParam(), Dtype::bf16, policy);
    for (size_t r = 0; r < kept.size(); ++r) {
      EXPECT_TRUE(same_bits(again[r].y.get(), kept[r].y.get()));
      EXPECT_TRUE(same_bits(again[r].dx.get(), kept[r].dx.get()));
      for (const auto& [name, grad] : kept[r].gradients) {
        EXPECT_TRUE(same_bits(again[r].gradients.at(name).get(), grad.get())) << name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, DecoderLayerOnRanks, testing::Values(2, 3, 8));

}  // namespace
}  // namespace lapidary::test
