#pragma once

#include <string>

#include "lapidary/comm/mesh_groups.h"
#include "lapidary/models/gemma4/conditional_generation.h"

namespace lapidary {

struct TraceOptions {
  std::string model;   // Hugging Face directory
  std::string inputs;  // safetensors
  std::string output;  // safetensors
  bool grads = false;
  nn::Recompute recompute = nn::Recompute::none;
  Dtype dtype = Dtype::f32;  // f64 runs the reference operations
  Backend backend = Backend::cpu;
};

// Runs a model on given inputs and writes what it computes, for comparison with another
// implementation.
//   inputs:  input_ids or inputs_embeds; labels, attention_mask, position_ids, packed_seq_ids,
//            mm_token_type_ids, per_layer_inputs as far as present
//   output:  logits [B, S, V], hidden_states.i, router_indices.i and router_weights.i [B, S, K];
//            with labels loss [1] (mean over counted targets); with grads grad.<parameter>.
// f32 for f32 and bf16 models, f64 for f64.
//
// On several ranks, all of which call it, the rows are dealt over the data group; the first rank
// writes the same file as one rank would.
void trace(const TraceOptions& options, const MeshGroups& groups = MeshGroups());

}  // namespace lapidary
