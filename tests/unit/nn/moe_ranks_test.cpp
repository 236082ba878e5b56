#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <ostream>

#include "lapidary/nn/moe.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"

// Experts that are dealt to several ranks compute what one rank does with all tokens.
namespace lapidary::test {
namespace {

using nn::Recompute;

constexpr int64_t kHidden = 12, kInner = 5;

struct Case {
  int64_t ranks, experts, top_k;
  std::vector<int64_t> tokens;  // of each rank
  bool masked = false;
  bool tied = false;  // all tokens choose the first experts

  int64_t total() const { return std::accumulate(tokens.begin(), tokens.end(), int64_t{0}); }
  Interval of(int64_t rank) const {
    const auto first = tokens.begin() + rank;
    const int64_t begin = std::accumulate(tokens.begin(), first, int64_t{0});
    return {begin, begin + *first};
  }
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.ranks << " ranks, " << c.experts << " experts, top " << c.top_k << ", tokens";
  for (const int64_t n : c.tokens) *out << ' ' << n;
  if (c.masked) *out << ", masked";
  if (c.tied) *out << ", tied";
}

// Parameters and the tokens of all ranks, one after the other.
struct Inputs {
  OwnedTensor proj, scale, per_expert_scale, gate_up, down;
  OwnedTensor u, x, dy, du, valid;
  Inputs(const Case& c, Dtype dtype) {
    Rng rng(50, 7);
    const Dtype acc = accumulate_dtype(dtype);
    const auto make = [&](const Shape& shape, double size) {
      return cast(random(Dtype::f64, shape, rng, size).get(), dtype);
    };
    proj = c.tied ? zeros(dtype, {c.experts, kHidden}) : make({c.experts, kHidden}, 1.0);
    scale = make({kHidden}, 1.0);
    per_expert_scale = make({c.experts}, 1.0);
    gate_up = make({c.experts, 2 * kInner, kHidden}, 0.3);
    down = make({c.experts, kHidden, kInner}, 0.3);
    u = cast(make({c.total(), kHidden}, 1.0).get(), acc);
    x = make({c.total(), kHidden}, 1.0);
    dy = make({c.total(), kHidden}, 1.0);
    du = cast(make({c.total(), kHidden}, 1.0).get(), acc);
    valid = random_int(Dtype::u8, {c.total()}, rng, 0, 3);
  }
};

// Of some tokens; gradients of experts are those of one rank's.
struct Results {
  OwnedTensor y, dx, du, loads;
  OwnedTensor proj, scale, per_expert_scale, gate_up, down;  // gradients
  int64_t exchanged = 0;                                     // bytes
};

class Ranks : public testing::TestWithParam<Case> {
 protected:
  // Tensors that go into and come out of one pass.
  struct Args {
    ConstTensor u, x, dy, valid;
    Tensor y, dx, du, loads;
  };
  static void pass(Context& ctx, const nn::Gemma4MoE& layer, Recompute policy, const Args& a) {
    nn::Routing routing = layer.alloc_routing(ctx, a.x.dim(0), a.x.dtype());
    const nn::Gemma4MoE::ForwardArgs args{
        .u = a.u, .x = a.x, .token_valid = a.valid, .loads = a.loads, .y = a.y};
    nn::Gemma4MoE::Saved saved;
    const int64_t mark = ctx.activations.mark();
    layer.forward(ctx, policy, args, routing, saved);
    if (policy == Recompute::block) {
      ctx.activations.rewind(mark);
      layer.forward(ctx, policy, args, routing, saved);
    }
    layer.backward(ctx, {.u = a.u, .x = a.x, .dy = a.dy, .dx = a.dx, .du = a.du}, routing, saved);
  }
  // What a pass takes of `tokens` tokens, and nothing else knows how many others have.
  static MemoryPlan plan(Backend backend, const nn::Gemma4MoE& layer, Recompute policy,
                         const Case& c, int64_t tokens, Dtype dtype) {
    const Tensor rows(nullptr, dtype, {tokens, kHidden});
    const Tensor wide(nullptr, accumulate_dtype(dtype), {tokens, kHidden});
    Context ctx = Context::meta(backend);
    pass(ctx, layer, policy,
         {.u = wide,
          .x = rows,
          .dy = rows,
          .valid = Tensor(nullptr, Dtype::u8, {tokens}),
          .y = rows,
          .dx = rows,
          .du = wide,
          .loads = Tensor(nullptr, Dtype::i64, {c.experts})});
    return ctx.plan();
  }
  Results run(Backend backend, Dtype dtype, Recompute policy, ProcessGroup* group, const Inputs& in,
              const Interval& tokens) const {
    nn::Gemma4MoE layer("layer", {.hidden = kHidden,
                                  .experts = c.experts,
                                  .top_k = c.top_k,
                                  .intermediate = kInner,
                                  .eps = 1e-6,
                                  .ep = group});
    const Interval here = layer.parallel.experts();
    const Dtype acc = accumulate_dtype(dtype);
    const auto part = [&](const OwnedTensor& t) {
      return t->slice(0, tokens.begin, tokens.size());
    };
    Results out{.y = poisoned(dtype, {tokens.size(), kHidden}),
                .dx = poisoned(dtype, {tokens.size(), kHidden}),
                .du = cast(part(in.du), acc),
                .loads = zeros(Dtype::i64, {c.experts}),
                .proj = zeros(acc, in.proj->shape()),
                .scale = zeros(acc, in.scale->shape()),
                .per_expert_scale = zeros(acc, in.per_expert_scale->shape()),
                .gate_up = zeros(acc, {here.size(), 2 * kInner, kHidden}),
                .down = zeros(acc, {here.size(), kHidden, kInner})};
    const auto use = [](Parameter& p, const Tensor& value, const OwnedTensor& grad) {
      p.value = value;
      p.grad = grad.get();
    };
    use(layer.gate.proj, in.proj.get(), out.proj);
    use(layer.gate.scale, in.scale.get(), out.scale);
    use(layer.gate.per_expert_scale, in.per_expert_scale.get(), out.per_expert_scale);
    use(layer.experts.gate_up_proj, in.gate_up->slice(0, here.begin, here.size()), out.gate_up);
    use(layer.experts.down_proj, in.down->slice(0, here.begin, here.size()), out.down);

    const int64_t most =
        group != nullptr ? *std::max_element(c.tokens.begin(), c.tokens.end()) : tokens.size();
    const MemoryPlan memory = plan(backend, layer, policy, c, most, dtype);
    Context ctx = Context::make(backend, memory);
    ctx.activations.set_poison(true);
    ctx.scratch.set_poison(true);
    pass(ctx, layer, policy,
         {.u = part(in.u),
          .x = part(in.x),
          .dy = part(in.dy),
          .valid = c.masked ? ConstTensor(part(in.valid)) : ConstTensor(),
          .y = out.y.get(),
          .dx = out.dx.get(),
          .du = out.du.get(),
          .loads = out.loads.get()});
    EXPECT_LE(ctx.activations.peak(), memory.activations);
    EXPECT_LE(ctx.scratch.peak(), memory.scratch);
    EXPECT_EQ(ctx.scratch.mark(), 0);
    if (group != nullptr) out.exchanged = group->traffic(Collective::all_to_all_v).bytes;
    return out;
  }
  std::vector<Results> run_all(Backend backend, Dtype dtype, Recompute policy,
                               const Inputs& in) const {
    std::vector<Results> out(static_cast<size_t>(c.ranks));
    run_ranks(c.ranks, [&](int64_t rank, const SplitWorld& split) {
      const auto group = split(0, "ep");
      out[static_cast<size_t>(rank)] = run(backend, dtype, policy, group.get(), in, c.of(rank));
    });
    return out;
  }

  // Both empty: equal.
  static double error(const ConstTensor& got, const ConstTensor& want) {
    return want.numel() == 0 ? 0.0 : max_error(got, want) / std::max(1.0, largest(want));
  }
  static double largest(const ConstTensor& t) {
    double most = 0.0;
    for (const double v : values(t)) most = std::max(most, std::abs(v));
    return most;
  }
  static OwnedTensor sum(const std::vector<Results>& ranks, OwnedTensor Results::*member) {
    OwnedTensor out = zeros((ranks[0].*member)->dtype(), (ranks[0].*member)->shape());
    for (const Results& r : ranks) {
      for (int64_t i = 0; i < out->numel(); ++i) {
        set(out.get(), i, at(out.get(), i) + at((r.*member).get(), i));
      }
    }
    return out;
  }
  void expect_equal(const std::vector<Results>& ranks, const Results& one, double tol) const {
    for (int64_t r = 0; r < c.ranks; ++r) {
      const Results& mine = ranks[static_cast<size_t>(r)];
      const Interval tokens = c.of(r), here = dealt(c.experts, c.ranks, r);
      const auto part = [](const OwnedTensor& t, const Interval& i) {
        return t->slice(0, i.begin, i.size());
      };
      SCOPED_TRACE("rank " + std::to_string(r));
      EXPECT_LE(error(mine.y.get(), part(one.y, tokens)), tol);
      EXPECT_LE(error(mine.dx.get(), part(one.dx, tokens)), tol);
      EXPECT_LE(error(mine.du.get(), part(one.du, tokens)), tol);
      EXPECT_LE(error(mine.gate_up.get(), part(one.gate_up, here)), tol);
      EXPECT_LE(error(mine.down.get(), part(one.down, here)), tol);
    }
    EXPECT_LE(error(sum(ranks, &Results::proj).get(), one.proj.get()), tol);
    EXPECT_LE(error(sum(ranks, &Results::scale).get(), one.scale.get()), tol);
    EXPECT_LE(error(sum(ranks, &Results::per_expert_scale).get(), one.per_expert_scale.get()), tol);
    EXPECT_EQ(values(sum(ranks, &Results::loads).get()), values(one.loads.get()));
  }
  void compare(Backend backend, Dtype dtype, double tol) const {
    const Inputs in(c, dtype);
    const Results one = run(backend, dtype, Recompute::none, nullptr, in, {0, c.total()});
    expect_equal(run_all(backend, dtype, Recompute::none, in), one, tol);
  }
  const Case c = GetParam();
};

TEST_P(Ranks, EqualOneInDouble) { compare(Backend::ref, Dtype::f64, 1e-13); }
TEST_P(Ranks, EqualOneInComplex) { compare(Backend::ref, Dtype::c128, 1e-13); }
TEST_P(Ranks, EqualOneInFloat) { compare(Backend::cpu, Dtype::f32, 2e-6); }
// Sums of the experts of a rank are rounded before they travel.
TEST_P(Ranks, EqualOneInBf16) { compare(Backend::cpu, Dtype::bf16, 1.0 / 64); }

TEST_P(Ranks, PoliciesGiveTheSameBits) {
  const Inputs in(c, Dtype::f32);
  const std::vector<Results> kept = run_all(Backend::cpu, Dtype::f32, Recompute::none, in);
  for (const Recompute policy : {Recompute::light, Recompute::block}) {
    const std::vector<Results> again = run_all(Backend::cpu, Dtype::f32, policy, in);
    for (size_t r = 0; r < kept.size(); ++r) {
      SCOPED_TRACE(std::string(nn::name_of(policy)) + ", rank " + std::to_string(r));
      for (OwnedTensor Results::*t :
           {&Results::y, &Results::dx, &Results::du, &Results::loads, &Results::proj,
            &Results::scale, &Results::per_expert_scale, &Results::gate_up, &Results::down}) {
        EXPECT_TRUE(same_bits((again[r].*t).get(), (kept[r].*t).get()));
      }
    }
  }
}

// x and y once more under `block`, no choices and no gradients.
TEST_P(Ranks, RecomputationMovesRowsButNeverRoutes) {
  const Inputs in(c, Dtype::f32);
  const auto total = [&](Recompute policy) {
    int64_t bytes = 0;
    for (const Results& r : run_all(Backend::cpu, Dtype::f32, policy, in)) bytes += r.exchanged;
    return bytes;
  };
  // Of all ranks together: 8 ranks (ranks - 1) + S (12 K + 4 * 4 H) without recomputation, that is
  // choices, gradients of weights, and x, y, dy and dx of the S rows that leave a rank.
  const int64_t counts = 8 * c.ranks * (c.ranks - 1);
  const int64_t row = 12 * c.top_k + 16 * kHidden;
  const int64_t none = total(Recompute::none);
  ASSERT_EQ((none - counts) % row, 0);
  const int64_t rows = (none - counts) / row;
  EXPECT_EQ(total(Recompute::light), none);
  EXPECT_EQ(total(Recompute::block), none + rows * 8 * kHidden);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Ranks,
    testing::Values(Case{2, 4, 2, {5, 7}}, Case{2, 2, 2, {0, 9}, true}, Case{2, 3, 1, {6, 4}},
                    Case{3, 5, 3, {4, 0, 6}, true}, Case{3, 5, 5, {1, 8, 3}},
                    Case{3, 3, 1, {7, 7, 7}, false, true}, Case{3, 7, 2, {5, 6, 2}, true, true},
                    Case{4, 4, 4, {3, 1, 0, 2}}, Case{4, 9, 4, {6, 6, 0, 11}, true},
                    Case{4, 8, 2, {0, 0, 0, 0}}, Case{5, 16, 4, {20, 3, 1, 17, 30}, true}));

}  // namespace
}  // namespace lapidary::test
