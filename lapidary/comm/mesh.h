#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lapidary {

// What a recipe's `distributed:` block asks for. Unset dp_size follows from the number of ranks.
struct MeshOptions {
  int64_t world_size = 1;
  std::optional<int64_t> dp_size = {};
  int64_t dp_replicate_size = 1;
  int64_t tp_size = 1;
  int64_t cp_size = 1;
  int64_t pp_size = 1;
  int64_t ep_size = 1;
};

struct MeshProblem {
  std::string axis;  // the option's name: "tp_size", ...
  std::string what;
  std::string fix;
};

// Every rule that the options break; empty when they describe a mesh:
//   every size is at least 1; tp cp pp divides world_size, and the quotient is dp (dp_size, when
//   set); dp_replicate divides dp and is 1 or below dp; ep divides dp cp tp.
std::vector<MeshProblem> check_mesh(const MeshOptions& options);

// "ep=2,dp_shard=4": sizes of dp_replicate, dp_shard, ep, tp, cp and pp for so many ranks; what is
// not named is 1, but for dp_shard, which is what is left. Throws one Error with every mistake.
MeshOptions parse_mesh(const std::string& text, int64_t world_size);

// Two views of the same ranks, each with its last axis running fastest:
//   dense   (pp, dp_replicate, dp_shard, cp, tp)
//   sparse  (pp, ep_shard, ep): everything but pp flattened and split anew, so that consecutive
//           ranks form a group of experts
class Mesh {
 public:
  struct Dense {
    int64_t pp = 0, dp_replicate = 0, dp_shard = 0, cp = 0, tp = 0;
    bool operator==(const Dense&) const = default;
  };
  struct Sparse {
    int64_t pp = 0, ep_shard = 0, ep = 0;
    bool operator==(const Sparse&) const = default;
  };

  // The mesh of one rank.
  Mesh() = default;
  // Throws Error with every broken rule.
  explicit Mesh(const MeshOptions& options);

  const Dense& sizes() const { return dense_; }
  const Sparse& sparse_sizes() const { return sparse_; }
  int64_t world_size() const;
  int64_t dp_size() const { return dense_.dp_replicate * dense_.dp_shard; }
  Dense dense(int64_t rank) const;    // coordinates
  Sparse sparse(int64_t rank) const;  // coordinates

 private:
  void require_rank(int64_t rank) const;
  Dense dense_ = {1, 1, 1, 1, 1};
  Sparse sparse_ = {1, 1, 1};
};

}  // namespace lapidary
