#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "lapidary/comm/mesh_groups.h"
#include "lapidary/core/context.h"
#include "lapidary/core/interval.h"
#include "lapidary/core/parameter.h"

namespace lapidary {

// Which elements of a flattened parameter a rank holds between the steps: chunk r of equal padded
// chunks (chunk_of in core/interval.h)
//   dense    of the whole tensor, over the dp_shard axis; the replicas hold the same
//   expert   of the rank's experts (dealt over ep), over the ep_shard axis
Interval shard_interval(const Shape& shape, Placement placement, const Mesh& mesh, int64_t rank,
                        int64_t alignment);

// Where whole gradients lie between their computation and their use.
//   whole      each in memory of its own: they may be accumulated over several backward passes
//   sharded    the layers share the memory of the largest one; a rank keeps the reduced gradient of
//              its shard alone. Parameters that are not sharded have memory of their own.
//   per_layer  the same, and the shards' gradients share memory too: they are complete, and can be
//              used, only until the next layer's backward
enum class GradientBuffers { whole, sharded, per_layer };

// Fully sharded data parallelism (ZeRO: Rajbhandari et al. 2020; FSDP: Zhao et al. 2023):
//   forward: all_gather of a unit's weights       backward: reduce_scatter of its gradients
// A unit is a decoder layer, or the root: everything outside the layers. Every parameter is sharded
// by itself, evenly and padded, so that no rank is left without memory for one and checkpoints stay
// tensor by tensor. Parameter::value and grad become what layers compute with; an optimiser gets
// parameters of the same names that are this rank's shards. Where an axis has one rank, nothing is
// copied: the shard is the parameter itself.
//
// Sent per rank and pass, for a unit of P sharded elements on n ranks: (n - 1) / n P elements of
// the weights' type for each gathering, (n - 1) / n P of the gradients' type for the reduction, and
// over r replicas 2 (r - 1) / r P / n.
class Fsdp {
 public:
  struct Options {
    Backend backend = Backend::cpu;
    Dtype dtype = Dtype::f32;
    // true: gathered weights stay until they change (ZeRO-2). false: the layers share two buffers,
    // one being used, one being filled (ZeRO-3); the root has one of its own.
    bool resident = false;
    int64_t alignment = 1;  // of shards, in elements
  };
  // units: the layers in order, then the root. groups and parameters keep their addresses.
  Fsdp(const MeshGroups& groups, const Options& options,
       std::vector<std::vector<Parameter*>> units);
  Fsdp(const Fsdp&) = delete;
  Fsdp& operator=(const Fsdp&) = delete;

  int64_t root() const { return static_cast<int64_t>(units_.size()) - 1; }
  bool sharded() const { return sharded_; }  // whether any axis has several ranks

  // Makes the values of a unit whole; they stay so until another unit needs the memory. Collective.
  void gather(Context& ctx, int64_t unit);
  // Starts it; a unit out of range is ignored.
  void prefetch(Context& ctx, int64_t unit);
  // Shards were changed: what was gathered is out of date.
  void weights_changed();

  // Memory for the gradients of trainable parameters, zeroed. The kind counts at the first call.
  void zero_gradients(Context& ctx, GradientBuffers kind);
  // Before the backward of a layer: empties the memory that layers share.
  void begin_backward(Context& ctx, int64_t unit);
  // Adds the sum of a unit's gradients over the ranks to those of the shards; frozen ones stay out.
  // Leaves the whole gradients that were reduced at zero. Collective.
  void reduce(Context& ctx, int64_t unit);
  int64_t gradient_bytes() const;
  // Sums over the ranks, each element of the model counted once: squares [2] f64 by Placement.
  void sum_squares(Context& ctx, const Tensor& squares) const;

  // What an optimiser works on, of a unit and of all units in their order.
  std::vector<Parameter*> optimizer_parameters(int64_t unit);
  std::vector<Parameter*> optimizer_parameters();
  struct Shard {
    Shape whole;
    Interval interval;          // in the flattened whole tensor
    Tensor value;               // [interval.size()], or the shape of the rank's experts
    Tensor grad;                // likewise; undefined without gradients
    bool first_replica = true;  // one rank of those that hold the same
  };
  // Of a parameter, or of an optimiser's parameter.
  Shard shard_of(const Parameter& parameter) const;
  // A whole tensor from the ranks' shards `part` (shard_of().value, .grad or of like shape), on the
  // first rank of the data group; elsewhere undefined. Collective.
  OwnedTensor whole(const Parameter& parameter, const ConstTensor& part) const;

 private:
  struct Entry {
    Parameter* whole = nullptr;
    Parameter shard;  // unused when is_whole()
    ProcessGroup* group = nullptr;
    int64_t size = 1;  // of group
    Interval interval;
    Shape local;            // of whole->value
    int64_t chunk = 0;      // elements, padding included
    Tensor gathered, own;   // values: [size chunk], [chunk]
    Tensor grads, reduced;  // gradients: likewise
    bool shared = false;    // grads lie in layer_gradients_
    bool fresh = true;      // nothing was added to reduced in this step

    bool is_whole() const { return size == 1 && local == whole->shape; }
    int64_t whole_elements() const { return size == 1 ? local.numel() : size * chunk; }
  };
  struct Slot {  // memory for the gathered values of a unit
    OwnedTensor memory;
    int64_t unit = -1;
    std::vector<Pending> pending;
  };

  Entry make_entry(Parameter& parameter) const;
  void allocate_values();
  class SharedRoom;
  bool shares(const Entry& entry) const;
  bool shares_reduced(const Entry& entry) const;
  void allocate_layer_gradients();
  void allocate_gradients(GradientBuffers kind);
  void reduce(Context& ctx, Entry& entry);
  Tensor own_memory(std::vector<OwnedTensor>& owners, Dtype dtype, int64_t elements);
  Slot& slot_of(int64_t unit);
  const Entry& entry_of(const Parameter& parameter) const;

  const MeshGroups& groups_;
  Options options_;
  bool sharded_ = false;
  std::vector<std::vector<Entry>> units_;
  std::unordered_map<std::string, std::pair<size_t, size_t>> by_name_;
  std::vector<Slot> slots_;
  std::vector<OwnedTensor> values_, gradients_;
  OwnedTensor layer_gradients_, layer_reduced_;
  std::optional<GradientBuffers> kind_;
};

}  // namespace lapidary
