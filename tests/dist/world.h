#pragma once

#include <memory>

#include "lapidary/comm/bootstrap.h"
#include "lapidary/comm/mesh_groups.h"

namespace lapidary::test {

// The ranks that run the tests.
const World& world();
// Collective.
MeshGroups groups_of(const Mesh& mesh);

}  // namespace lapidary::test
