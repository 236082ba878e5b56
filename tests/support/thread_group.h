#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lapidary/comm/mesh_groups.h"

// Ranks as threads of one process: what several ranks do can be tested without a launcher.
namespace lapidary::test {

// Calls body(rank, split) on `size` threads, each of one OpenMP thread. The first exception, by
// rank, comes back after all have ended; ranks that wait for one that has failed fail too.
void run_ranks(int64_t size, const std::function<void(int64_t rank, const SplitWorld&)>& body);

// The same with one group of all, and what each rank throws as text; "" where it does not.
std::vector<std::string> errors_of_ranks(
    int64_t size, const std::function<void(int64_t rank, ProcessGroup& group)>& body);

// As run_ranks(), with the groups of a mesh.
void run_on_mesh(const Mesh& mesh, const std::function<void(const MeshGroups&)>& body);

}  // namespace lapidary::test
