#pragma once

#include <functional>
#include <memory>
#include <string>

#include "lapidary/comm/mesh.h"
#include "lapidary/comm/process_group.h"

namespace lapidary {

// Makes the group of all ranks with the same color, ordered by rank: World::split().
using SplitWorld =
    std::function<std::unique_ptr<ProcessGroup>(int64_t color, const std::string& name)>;

// The groups of a mesh that one rank belongs to, one for each axis that several ranks can share:
//   data          ranks with other rows: dp_replicate x dp_shard (and all of the world, while tp,
//                 cp and pp are 1)
//   dp_replicate  ranks that hold the same shard of a dense parameter
//   dp_shard      ranks that hold the shards of one replica
//   ep            ranks that share out the experts
//   ep_shard      ranks that hold the shards of the same experts
class MeshGroups {
 public:
  MeshGroups();  // one rank
  MeshGroups(const Mesh& mesh, int64_t rank, const SplitWorld& split);

  const Mesh& mesh() const { return mesh_; }
  int64_t rank() const { return rank_; }  // in the world
  ProcessGroup& data() const { return *data_; }
  ProcessGroup& dp_replicate() const { return *dp_replicate_; }
  ProcessGroup& dp_shard() const { return *dp_shard_; }
  ProcessGroup& ep() const { return *ep_; }
  ProcessGroup& ep_shard() const { return *ep_shard_; }
  // Payload sent so far over all groups.
  int64_t bytes_sent() const;

 private:
  Mesh mesh_;
  int64_t rank_ = 0;
  std::unique_ptr<ProcessGroup> data_, dp_replicate_, dp_shard_, ep_, ep_shard_;
};

}  // namespace lapidary
