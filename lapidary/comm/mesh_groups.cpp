#include "lapidary/comm/mesh_groups.h"

namespace lapidary {

MeshGroups::MeshGroups()
    : MeshGroups(Mesh(), 0, [](int64_t, const std::string&) -> std::unique_ptr<ProcessGroup> {
        return std::make_unique<SelfGroup>();
      }) {}

// The ranks of an axis differ in its coordinate alone: what is left of a rank when that coordinate
// is set to zero is their color.
MeshGroups::MeshGroups(const Mesh& mesh, int64_t rank, const SplitWorld& split)
    : mesh_(mesh), rank_(rank) {
  const Mesh::Dense size = mesh.sizes();
  const Mesh::Dense at = mesh.dense(rank);
  const int64_t model = at.cp * size.tp + at.tp;  // inside a data rank
  const int64_t models = size.cp * size.tp;
  data_ = split(at.pp * models + model, "data");
  dp_replicate_ = split((at.pp * size.dp_shard + at.dp_shard) * models + model, "dp_replicate");
  dp_shard_ = split((at.pp * size.dp_replicate + at.dp_replicate) * models + model, "dp_shard");
  const Mesh::Sparse sparse_size = mesh.sparse_sizes();
  const Mesh::Sparse sparse = mesh.sparse(rank);
  ep_ = split(sparse.pp * sparse_size.ep_shard + sparse.ep_shard, "ep");
  ep_shard_ = split(sparse.pp * sparse_size.ep + sparse.ep, "ep_shard");
}

int64_t MeshGroups::bytes_sent() const {
  int64_t bytes = 0;
  for (const ProcessGroup* group :
       {data_.get(), dp_replicate_.get(), dp_shard_.get(), ep_.get(), ep_shard_.get()}) {
    for (size_t i = 0; i < kCollectives; ++i) {
      bytes += group->traffic(static_cast<Collective>(i)).bytes;
    }
  }
  return bytes;
}

}  // namespace lapidary
