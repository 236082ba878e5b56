#pragma once

#include "lapidary/train/train_step.h"
#include "tests/support/golden.h"

// Golden cases on several ranks, each with its own rows. Every function is called by all ranks of
// the mesh at once.
namespace lapidary::test {

// Every legal mesh of so many ranks over dp_replicate, dp_shard and ep; without experts, over the
// first two.
std::vector<MeshOptions> legal_meshes(int64_t ranks, bool experts);
bool has_experts(const GoldenCase& golden);
std::string name_of(const MeshOptions& mesh);  // "dp_replicate 2, dp_shard 2, ep 4"

// The rows that this rank gets of a batch; a rank that gets none runs one row of padding.
struct DealtRows {
  DealtRows(const GoldenInputs& all, const ProcessGroup& data);
  Interval rows;  // of the batch
  GoldenInputs inputs;
};

struct RanksOptions {
  Dtype dtype = Dtype::f32;
  bool resident_weights = false;
  nn::Recompute recompute = nn::Recompute::none;
  GradientBuffers gradients = GradientBuffers::sharded;
  int64_t shard_alignment = 1;
};

struct RanksErrors {
  double logits = 0.0;         // peak, over this rank's rows, relative to the largest of all
  double loss = 0.0;           // relative
  GradientErrors gradients{};  // whole tensors, on the first rank
};
RanksErrors errors_on_ranks(const GoldenCase& golden, const MeshGroups& groups,
                            const RanksOptions& options);

// Steps as run_training() does them, with gradient accumulation where `micro_batches` > 1: each
// step's batch is dealt to ranks and micro-batches.
Trajectory train_on_ranks(const GoldenCase& golden, const MeshGroups& groups,
                          const RanksOptions& options, int64_t steps,
                          const GradientFlow& flow = {});

}  // namespace lapidary::test
