#include "lapidary/parallel/fsdp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "tests/support/ranks.h"
#include "tests/support/tensors.h"
#include "tests/support/thread_group.h"

namespace lapidary::test {
namespace {

using ::testing::ElementsAre;

TEST(ShardInterval, EveryElementIsOnOneRankOfEachReplica) {
  for (int64_t ranks = 1; ranks <= 8; ++ranks) {
    for (const MeshOptions& legal : legal_meshes(ranks, true)) {
      const Mesh mesh(legal);
      for (const int64_t alignment : {1, 4}) {
        for (const Shape& shape : {Shape{11, 3, 5}, Shape{8, 2}, Shape{9}}) {
          for (const Placement placement : {Placement::dense, Placement::expert}) {
            const int64_t copies = placement == Placement::dense ? mesh.sizes().dp_replicate : 1;
            std::vector<int64_t> times(static_cast<size_t>(shape.numel()));
            for (int64_t r = 0; r < ranks; ++r) {
              const Interval held = shard_interval(shape, placement, mesh, r, alignment);
              for (int64_t i = held.begin; i < held.end; ++i) ++times[static_cast<size_t>(i)];
            }
            for (const int64_t n : times) ASSERT_EQ(n, copies);
          }
        }
      }
    }
  }
}

// Two layers and a root, with values and gradients that depend on name and element alone.
class Units {
 public:
  Units(const MeshGroups& groups, const Fsdp::Options& options) {
    const auto add = [&](const char* name, const Shape& shape, Placement placement) {
      parameters_.push_back(std::make_unique<Parameter>(
          Parameter{.name = name, .shape = shape, .placement = placement}));
      return parameters_.back().get();
    };
    std::vector<std::vector<Parameter*>> units;
    units.push_back({add("0.w", {7, 3}, Placement::dense), add("0.e", {5, 2, 3}, Placement::expert),
                     add("0.one", {1}, Placement::dense)});
    units.push_back({add("1.w", {4, 9}, Placement::dense), add("1.e", {6, 1, 2}, Placement::expert),
                     add("1.frozen", {10}, Placement::dense)});
    units.push_back({add("table", {13, 4}, Placement::dense)});
    parameters_[5]->trainable = false;
    fsdp_.emplace(groups, options, std::move(units));
    for (const auto& p : parameters_) {
      const Fsdp::Shard shard = fsdp_->shard_of(*p);
      for (int64_t i = 0; i < shard.interval.size(); ++i) {
        shard.value.as<float>()[i] = value(*p, shard.interval.begin + i);
      }
    }
  }

  static float value(const Parameter& p, int64_t element) {
    return static_cast<float>(p.name.size() * 1000 + static_cast<size_t>(element));
  }
  Fsdp& fsdp() { return *fsdp_; }
  const std::vector<std::unique_ptr<Parameter>>& parameters() const { return parameters_; }
  // First element of the whole tensor that `p.value` has.
  static int64_t begin(const Parameter& p, const MeshGroups& groups) {
    if (p.placement == Placement::dense) return 0;
    const Interval experts =
        dealt(p.shape[0], groups.mesh().sparse_sizes().ep, groups.mesh().sparse(groups.rank()).ep);
    return experts.begin * (p.shape.numel() / p.shape[0]);
  }

 private:
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::optional<Fsdp> fsdp_;
};

void expect_gathered(Units& units, const MeshGroups& groups, const std::vector<size_t>& which) {
  for (const size_t i : which) {
    const Parameter& p = *units.parameters()[i];
    const int64_t begin = Units::begin(p, groups);
    for (int64_t e = 0; e < p.value.numel(); ++e) {
      ASSERT_EQ(p.value.as<float>()[e], Units::value(p, begin + e)) << p.name << " " << e;
    }
  }
}

TEST(Fsdp, UnitsAreWholeWhenGathered) {
  for (const int64_t ranks : {1, 2, 3, 4, 8}) {
    for (const MeshOptions& legal : legal_meshes(ranks, true)) {
      const Mesh mesh(legal);
      for (const bool resident : {false, true}) {
        run_on_mesh(mesh, [&](const MeshGroups& groups) {
          Units units(groups, {.resident = resident, .alignment = 2});
          Context ctx = Context::make(Backend::cpu);
          units.fsdp().weights_changed();
          for (int pass = 0; pass < 2; ++pass) {
            units.fsdp().gather(ctx, 2);
            units.fsdp().gather(ctx, 0);
            units.fsdp().prefetch(ctx, 1);
            expect_gathered(units, groups, {0, 1, 2, 6});
            units.fsdp().gather(ctx, 1);
            expect_gathered(units, groups, {3, 4, 5, 6});
            units.fsdp().weights_changed();
          }
        });
      }
    }
  }
}

// Rank r adds (r + 1) times its gradient: the sum is n (n + 1) / 2 times that.
TEST(Fsdp, GradientsAreSummedOverTheRanksThatComputedThem) {
  for (const int64_t ranks : {2, 3, 4, 8}) {
    for (const MeshOptions& legal : legal_meshes(ranks, true)) {
      const Mesh mesh(legal);
      for (const GradientBuffers kind : {GradientBuffers::whole, GradientBuffers::sharded}) {
        run_on_mesh(mesh, [&](const MeshGroups& groups) {
          Units units(groups, {});
          Context ctx = Context::make(Backend::cpu, {.scratch = 1 << 16});
          Fsdp& fsdp = units.fsdp();
          fsdp.zero_gradients(ctx, kind);
          EXPECT_FALSE(units.parameters()[5]->grad.defined());
          for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
            for (const int64_t unit : {1, 0, 2}) {
              fsdp.begin_backward(ctx, unit);
              for (const auto& p : units.parameters()) {
                if (p->name[0] != "01t"[unit] || !p->grad.defined()) continue;
                for (int64_t e = 0; e < p->grad.numel(); ++e) {
                  p->grad.as<float>()[e] += static_cast<float>(groups.rank() + 1) *
                                            Units::value(*p, Units::begin(*p, groups) + e);
                }
              }
              if (kind == GradientBuffers::sharded || micro_batch == 1) fsdp.reduce(ctx, unit);
            }
          }
          for (const auto& p : units.parameters()) {
            if (!p->trainable) continue;
            // Dense: all ranks; experts: those that hold the same ones.
            int64_t weight = 0;
            for (int64_t r = 0; r < ranks; ++r) {
              const bool same = p->placement == Placement::dense ||
                                mesh.sparse(r).ep == mesh.sparse(groups.rank()).ep;
              if (same) weight += r + 1;
            }
            const Fsdp::Shard shard = fsdp.shard_of(*p);
            for (int64_t i = 0; i < shard.interval.size(); ++i) {
              ASSERT_EQ(shard.grad.as<float>()[i], 2.0F * static_cast<float>(weight) *
                                                       Units::value(*p, shard.interval.begin + i))
                  << p->name;
            }
          }
        });
      }
    }
  }
}

TEST(Fsdp, SquaresAreCountedOnceAndWholeTensorsComeTogether) {
  for (const int64_t ranks : {1, 2, 4, 8}) {
    for (const MeshOptions& legal : legal_meshes(ranks, true)) {
      const Mesh mesh(legal);
      run_on_mesh(mesh, [&](const MeshGroups& groups) {
        Units units(groups, {});
        Context ctx = Context::make(Backend::cpu);
        OwnedTensor squares = zeros(Dtype::f64, {2});
        double expected[2] = {0.0, 0.0};
        for (const auto& p : units.parameters()) {
          const auto kind = static_cast<int64_t>(p->placement);
          const Fsdp::Shard shard = units.fsdp().shard_of(*p);
          for (int64_t i = 0; i < shard.interval.size(); ++i) {
            const double v = shard.value.as<float>()[i];
            squares->as<double>()[kind] += v * v;
          }
          for (int64_t e = 0; e < p->shape.numel(); ++e) {
            expected[kind] += static_cast<double>(Units::value(*p, e)) * Units::value(*p, e);
          }
          const OwnedTensor whole = units.fsdp().whole(*p, shard.value);
          ASSERT_EQ(whole->defined(), groups.rank() == 0);
          for (int64_t e = 0; e < whole->numel(); ++e) {
            ASSERT_EQ(whole->as<float>()[e], Units::value(*p, e));
          }
        }
        units.fsdp().sum_squares(ctx, squares.get());
        EXPECT_EQ(squares->as<double>()[0], expected[0]);
        EXPECT_EQ(squares->as<double>()[1], expected[1]);
      });
    }
  }
}

// What the comment of Fsdp says is sent, for a layer of 21 + 1 dense elements on four ranks.
TEST(Fsdp, TrafficIsWhatTheFormulasSay) {
  run_on_mesh(Mesh({.world_size = 4, .dp_replicate_size = 2}), [](const MeshGroups& groups) {
    Units units(groups, {});
    Context ctx = Context::make(Backend::cpu);
    units.fsdp().zero_gradients(ctx, GradientBuffers::whole);
    const int64_t chunk = (11 + 1) * 4;  // dense: two shards, of 21 and of 1 elements
    const int64_t experts = 8 * 4;       // 30 elements on four ranks
    units.fsdp().gather(ctx, 0);
    EXPECT_EQ(groups.dp_shard().traffic(Collective::all_gather).bytes, chunk);
    EXPECT_EQ(groups.ep_shard().traffic(Collective::all_gather).bytes, 3 * experts);
    units.fsdp().gather(ctx, 0);  // is there
    EXPECT_EQ(groups.dp_shard().traffic(Collective::all_gather).bytes, chunk);
    units.fsdp().reduce(ctx, 0);
    EXPECT_EQ(groups.dp_shard().traffic(Collective::reduce_scatter).bytes, chunk);
    EXPECT_EQ(groups.ep_shard().traffic(Collective::reduce_scatter).bytes, 3 * experts);
    EXPECT_EQ(groups.dp_replicate().traffic(Collective::all_reduce).bytes, chunk);
  });
}

}  // namespace
}  // namespace lapidary::test
