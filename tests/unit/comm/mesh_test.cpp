#include "lapidary/comm/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> axes_of(const std::vector<MeshProblem>& problems) {
  std::vector<std::string> axes;
  for (const MeshProblem& problem : problems) axes.push_back(problem.axis);
  return axes;
}

TEST(Mesh, OneRank) {
  const Mesh mesh{MeshOptions{}};
  EXPECT_EQ(mesh.world_size(), 1);
  EXPECT_EQ(mesh.dp_size(), 1);
  EXPECT_EQ(mesh.dense(0), Mesh::Dense{});
  EXPECT_EQ(mesh.sparse(0), Mesh::Sparse{});
  EXPECT_THROW(mesh.dense(1), Error);
  EXPECT_EQ(Mesh().sizes(), mesh.sizes());
}

TEST(Mesh, OneRankRefusesEveryAxisAtOnce) {
  const std::vector<MeshProblem> found =
      check_mesh({.tp_size = 2, .cp_size = 3, .pp_size = 4, .ep_size = 8});
  EXPECT_THAT(axes_of(found), ElementsAre("tp_size", "cp_size", "pp_size", "ep_size"));
  EXPECT_EQ(found[0].what, "2 needs 2 ranks, there is 1");
  EXPECT_THAT(found[0].fix, HasSubstr("mpirun -n 2"));
  EXPECT_THROW(Mesh({.tp_size = 2}), Error);
}

TEST(Mesh, SizesBelowOne) {
  EXPECT_THAT(axes_of(check_mesh({.world_size = 4, .dp_size = 0, .tp_size = -1, .ep_size = 0})),
              ElementsAre("dp_size", "tp_size", "ep_size"));
}

TEST(Mesh, ProductsMustFit) {
  EXPECT_THAT(check_mesh({.world_size = 8, .tp_size = 2, .cp_size = 2, .ep_size = 8}), IsEmpty());
  EXPECT_THAT(axes_of(check_mesh({.world_size = 8, .tp_size = 3})), ElementsAre("tp_size"));
  EXPECT_THAT(axes_of(check_mesh({.world_size = 8, .dp_size = 8, .tp_size = 2})),
              ElementsAre("dp_size"));
  EXPECT_THAT(axes_of(check_mesh({.world_size = 8, .dp_replicate_size = 3, .ep_size = 5})),
              ElementsAre("dp_replicate_size", "ep_size"));
  EXPECT_THAT(axes_of(check_mesh({.world_size = 8, .dp_replicate_size = 8})),
              ElementsAre("dp_replicate_size"));
  // The experts' ranks are those of one pipeline stage.
  EXPECT_THAT(axes_of(check_mesh({.world_size = 8, .pp_size = 2, .ep_size = 8})),
              ElementsAre("ep_size"));
}

std::string refusal(const std::string& text, int64_t ranks) {
  try {
    parse_mesh(text, ranks);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(ParseMesh, NamedAxesAndWhatIsLeft) {
  const MeshOptions all = parse_mesh("ep=2,dp_shard=4,dp_replicate=2", 8);
  EXPECT_EQ(all.ep_size, 2);
  EXPECT_EQ(all.dp_replicate_size, 2);
  EXPECT_EQ(Mesh(all).sizes(), (Mesh::Dense{1, 2, 4, 1, 1}));
  EXPECT_EQ(Mesh(parse_mesh("ep=4", 8)).sizes(), (Mesh::Dense{1, 1, 8, 1, 1}));
  EXPECT_EQ(Mesh(parse_mesh("", 3)).sizes(), (Mesh::Dense{1, 1, 3, 1, 1}));
}

TEST(ParseMesh, EveryMistakeAtOnce) {
  EXPECT_THAT(refusal("ep=3,dp_shard=2", 8), AllOf(HasSubstr("ep_size"), HasSubstr("dp_size")));
  EXPECT_THAT(refusal("foo=2,ep=x", 8), AllOf(HasSubstr("foo"), HasSubstr("ep=x")));
  EXPECT_THAT(refusal("dp_shard=-4", 4), HasSubstr("dp_shard=-4"));
  EXPECT_THAT(refusal("ep=2", 1), HasSubstr("mpirun -n 2"));
}

TEST(Mesh, Coordinates) {
  const Mesh mesh({.world_size = 32,
                   .dp_replicate_size = 2,
                   .tp_size = 2,
                   .cp_size = 2,
                   .pp_size = 2,
                   .ep_size = 4});
  EXPECT_EQ(mesh.sizes(), (Mesh::Dense{2, 2, 2, 2, 2}));
  EXPECT_EQ(mesh.sparse_sizes(), (Mesh::Sparse{2, 4, 4}));
  EXPECT_EQ(mesh.dp_size(), 4);
  EXPECT_EQ(mesh.dense(0b10110), (Mesh::Dense{1, 0, 1, 1, 0}));
  EXPECT_EQ(mesh.sparse(16 + 6), (Mesh::Sparse{1, 1, 2}));
  for (int64_t rank = 0; rank < 32; ++rank) EXPECT_EQ(mesh.sparse(rank).ep, rank % 4);
}

}  // namespace
}  // namespace lapidary
