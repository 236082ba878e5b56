#pragma once

#include <string>
#include <vector>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/comm/process_group.h"

// What must hold before ranks write parts of the same tensors. Collective; an Error comes on every
// rank.
namespace lapidary {

// Error unless every rank gives the same names, shapes and target types in the same order, and the
// same stem and size of shards. Compares one hash of them.
void require_same_tensors(const std::string& where, const std::vector<TensorSource>& tensors,
                          const std::string& stem, int64_t max_shard_bytes, ProcessGroup& group);

// Error unless every element of every tensor is in the part of exactly one rank: which elements of
// which tensor no rank writes, or which ranks write together.
void require_every_element_once(const std::string& where, const std::vector<TensorSource>& tensors,
                                ProcessGroup& group);

}  // namespace lapidary
