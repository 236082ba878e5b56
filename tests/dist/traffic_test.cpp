#include <gtest/gtest.h>

#include <numeric>

#include "tests/dist/world.h"
#include "tests/support/ranks.h"

// What a pass over a model sends, against the formulas of docs/parallelism.md.
namespace lapidary::test {
namespace {

constexpr int64_t kFloat = 4;

struct LayerBytes {
  int64_t dense = 0, experts = 0;  // of the shards that a rank sends to the others
};

// By layer; the last entry is everything outside the layers.
std::vector<LayerBytes> shard_bytes(Gemma4ForConditionalGeneration& model,
                                    const MeshGroups& groups) {
  const Mesh& mesh = groups.mesh();
  const int64_t layers = model.config().text.num_hidden_layers;
  std::vector<LayerBytes> out(static_cast<size_t>(layers) + 1);
  model.for_each_parameter([&](Parameter& p) {
    size_t unit = out.size() - 1;
    if (const size_t at = p.name.find("layers."); at != std::string::npos) {
      unit = static_cast<size_t>(std::stoll(p.name.substr(at + 7)));
    }
    if (p.placement == Placement::dense) {
      const int64_t n = mesh.sizes().dp_shard;
      out[unit].dense += (n - 1) * chunk_size(p.shape.numel(), n) * kFloat;
    } else {
      const int64_t n = mesh.sparse_sizes().ep_shard;
      out[unit].experts += (n - 1) * chunk_size(p.value.numel(), n) * kFloat;
    }
  });
  return out;
}

int64_t gathered(const std::vector<LayerBytes>& units, int64_t LayerBytes::*kind) {
  int64_t sum = units.back().*kind;  // once
  const size_t layers = units.size() - 1;
  for (size_t i = 0; i < layers; ++i) {
    sum += (i + 2 >= layers ? 1 : 2) * units[i].*kind;  // the last two are still there
  }
  return sum;
}

struct OnePass {
  OnePass(const GoldenCase& golden, const MeshGroups& groups, nn::Recompute recompute)
      : model(
            Gemma4ForConditionalGeneration::from_pretrained(golden.directory, {.groups = &groups})),
        mine(golden.inputs, groups.data()) {
    Context ctx = Context::make(Backend::cpu);
    model.zero_gradients(ctx, GradientBuffers::sharded);
    for (ProcessGroup* group :
         {&groups.dp_shard(), &groups.dp_replicate(), &groups.ep(), &groups.ep_shard()}) {
      group->reset_traffic();
    }
    const gemma4::LossOptions loss{.policy = recompute};
    pass = Context::make(Backend::cpu, model.plan_loss(golden.inputs.text(), loss));
    model.loss(pass, mine.inputs.text(), mine.inputs.labels.get(), loss);
  }
  Gemma4ForConditionalGeneration model;
  DealtRows mine;
  Context pass;  // what model.last_pass() looks at lies here
};

TEST(Traffic, WeightsAndGradients) {
  for (const char* name : {"dense_text", "moe_text"}) {
    const GoldenCase golden(name);
    const bool experts = std::string(name) == "moe_text";
    for (const MeshOptions& options : legal_meshes(world().size(), experts)) {
      const MeshGroups groups = groups_of(Mesh(options));
      OnePass run(golden, groups, nn::Recompute::none);
      const std::vector<LayerBytes> units = shard_bytes(run.model, groups);
      const auto sent = [](const ProcessGroup& group, Collective c) {
        return group.traffic(c).bytes;
      };
      EXPECT_EQ(sent(groups.dp_shard(), Collective::all_gather),
                gathered(units, &LayerBytes::dense));
      EXPECT_EQ(sent(groups.ep_shard(), Collective::all_gather),
                gathered(units, &LayerBytes::experts));
      int64_t dense = 0, of_experts = 0, replicas = 0;
      const int64_t n = groups.dp_shard().size(), r = groups.dp_replicate().size();
      run.model.for_each_parameter([&](Parameter& p) {
        if (p.buffer) return;
        if (p.placement == Placement::expert) {
          const int64_t shards = groups.ep_shard().size();
          of_experts += (shards - 1) * chunk_size(p.value.numel(), shards) * kFloat;
          return;
        }
        const int64_t chunk = chunk_size(p.shape.numel(), n) * kFloat;
        dense += (n - 1) * chunk;
        replicas += 2 * (r - 1) * chunk / r;
      });
      EXPECT_EQ(sent(groups.dp_shard(), Collective::reduce_scatter), dense);
      EXPECT_EQ(sent(groups.ep_shard(), Collective::reduce_scatter), of_experts);
      EXPECT_EQ(sent(groups.dp_replicate(), Collective::all_reduce), replicas);
    }
  }
}

// Rows that leave and rows that came from elsewhere, over all layers.
TEST(Traffic, Tokens) {
  const GoldenCase golden("moe_text");
  for (const MeshOptions& options : legal_meshes(world().size(), true)) {
    if (options.ep_size == 1) continue;
    const MeshGroups groups = groups_of(Mesh(options));
    for (const nn::Recompute recompute : {nn::Recompute::none, nn::Recompute::block}) {
      OnePass run(golden, groups, recompute);
      const gemma4::TextConfig& text = run.model.config().text;
      const int64_t row = text.hidden_size * kFloat, choices = text.top_k_experts * 4;
      const int64_t again = recompute == nn::Recompute::block ? 2 : 1;
      int64_t bytes = 0;
      for (const nn::Routing& routing : run.model.last_pass().routing) {
        const auto me = static_cast<size_t>(groups.ep().rank());
        const auto others = [&](const Tensor& rows) {
          const int64_t* r = rows.as<int64_t>();
          return std::accumulate(r, r + rows.numel(), int64_t{0}) - r[me];
        };
        const int64_t leave = others(routing.plan.send_rows);
        const int64_t came = others(routing.plan.recv_rows);
        bytes += (groups.ep().size() - 1) * 8;           // counts
        bytes += leave * 2 * choices;                    // ids and weights
        bytes += again * (leave + came) * row;           // forward
        bytes += (leave + came) * row + came * choices;  // backward
      }
      EXPECT_EQ(groups.ep().traffic(Collective::all_to_all_v).bytes, bytes);
    }
  }
}

// Deferred: once a step, however many micro-batches; else once for each.
TEST(Traffic, GradientsAreReducedOnTheLastMicroBatch) {
  const GoldenCase golden("dense_text");
  const MeshGroups groups = groups_of(Mesh({.world_size = world().size()}));
  const auto calls = [&](const GradientFlow& flow) {
    groups.dp_shard().reset_traffic();
    train_on_ranks(golden, groups, {}, 1, flow);
    return groups.dp_shard().traffic(Collective::reduce_scatter).calls;
  };
  const int64_t once = calls({});
  EXPECT_GT(once, 0);
  EXPECT_EQ(calls({.micro_batches = 2}), once);
  EXPECT_EQ(calls({.defer_fsdp_grad_sync = false, .micro_batches = 2}), 2 * once);
}

}  // namespace
}  // namespace lapidary::test
