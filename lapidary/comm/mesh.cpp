#include "lapidary/comm/mesh.h"

#include <charconv>
#include <sstream>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

struct Axis {
  const char* name;
  int64_t size;
};

std::string text(int64_t value) { return std::to_string(value); }

std::vector<Axis> axes(const MeshOptions& o) {
  return {{"dp_size", o.dp_size.value_or(1)},
          {"dp_replicate_size", o.dp_replicate_size},
          {"tp_size", o.tp_size},
          {"cp_size", o.cp_size},
          {"pp_size", o.pp_size},
          {"ep_size", o.ep_size}};
}

// Sizes that cannot be: below one, or above the number of ranks there are.
std::vector<MeshProblem> check_ranges(const MeshOptions& o) {
  std::vector<MeshProblem> found;
  if (o.world_size < 1) found.push_back({"world_size", text(o.world_size) + " ranks", "use 1"});
  for (const Axis& axis : axes(o)) {
    if (axis.size < 1) {
      found.push_back({axis.name, text(axis.size) + " is not a size", "use 1 or more"});
    } else if (axis.size > o.world_size) {
      const bool alone = o.world_size == 1;
      const std::string what = text(axis.size) + " needs " + text(axis.size) + " ranks, there " +
                               (alone ? "is 1" : "are " + text(o.world_size));
      const std::string fix = alone ? "use 1, or start with mpirun -n " + text(axis.size)
                                    : "use at most " + text(o.world_size);
      found.push_back({axis.name, what, fix});
    }
  }
  return found;
}

std::vector<MeshProblem> check_products(const MeshOptions& o) {
  std::vector<MeshProblem> found;
  const int64_t model = o.tp_size * o.cp_size * o.pp_size;
  if (o.world_size % model != 0) {
    found.push_back({"tp_size",
                     "tp_size x cp_size x pp_size is " + text(model) + ", which does not divide " +
                         text(o.world_size) + " ranks",
                     "use sizes whose product does"});
    return found;
  }
  const int64_t dp = o.world_size / model;
  if (o.dp_size && *o.dp_size != dp) {
    found.push_back({"dp_size", text(*o.dp_size) + " is not what is left of the ranks: " + text(dp),
                     "leave it out, or use " + text(dp)});
  }
  if (dp % o.dp_replicate_size != 0) {
    found.push_back({"dp_replicate_size",
                     text(o.dp_replicate_size) + " does not divide dp_size " + text(dp),
                     "use a divisor"});
  } else if (o.dp_replicate_size != 1 && o.dp_replicate_size >= dp) {
    found.push_back({"dp_replicate_size",
                     text(o.dp_replicate_size) + " leaves nothing to shard of dp_size " + text(dp),
                     "use a smaller divisor, or 1"});
  }
  const int64_t stage = dp * o.cp_size * o.tp_size;
  if (stage % o.ep_size != 0) {
    found.push_back({"ep_size",
                     text(o.ep_size) + " does not divide dp x cp x tp, " + text(stage) + " ranks",
                     "use a divisor"});
  }
  return found;
}

}  // namespace

std::vector<MeshProblem> check_mesh(const MeshOptions& options) {
  std::vector<MeshProblem> found = check_ranges(options);
  return found.empty() ? check_products(options) : found;
}

MeshOptions parse_mesh(const std::string& spec, int64_t world_size) {
  MeshOptions out{.world_size = world_size};
  std::optional<int64_t> dp_shard;
  Problems problems;
  std::istringstream parts(spec);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : part.substr(equals + 1);
    int64_t size = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), size);
    if (error != std::errc() || end != value.data() + value.size() || size < 1) {
      problems.add(part, "is not an axis and its size", "write e.g. ep=2,dp_shard=4");
      continue;
    }
    if (name == "dp_replicate")
      out.dp_replicate_size = size;
    else if (name == "dp_shard")
      dp_shard = size;
    else if (name == "ep")
      out.ep_size = size;
    else if (name == "tp")
      out.tp_size = size;
    else if (name == "cp")
      out.cp_size = size;
    else if (name == "pp")
      out.pp_size = size;
    else
      problems.add(name, "is not an axis", "use dp_replicate, dp_shard, ep, tp, cp or pp");
  }
  if (dp_shard) out.dp_size = out.dp_replicate_size * *dp_shard;
  for (const MeshProblem& found : check_mesh(out)) problems.add(found.axis, found.what, found.fix);
  problems.throw_if_any("mesh \"" + spec + "\"");
  return out;
}

Mesh::Mesh(const MeshOptions& options) {
  Problems problems;
  for (const MeshProblem& problem : check_mesh(options)) {
    problems.add(problem.axis, problem.what, problem.fix);
  }
  problems.throw_if_any("mesh");
  const int64_t dp = options.world_size / (options.tp_size * options.cp_size * options.pp_size);
  dense_ = {options.pp_size, options.dp_replicate_size, dp / options.dp_replicate_size,
            options.cp_size, options.tp_size};
  const int64_t stage = dp * options.cp_size * options.tp_size;
  sparse_ = {options.pp_size, stage / options.ep_size, options.ep_size};
}

int64_t Mesh::world_size() const {
  return dense_.pp * dense_.dp_replicate * dense_.dp_shard * dense_.cp * dense_.tp;
}

void Mesh::require_rank(int64_t rank) const {
  if (rank < 0 || rank >= world_size()) fail("mesh", "no rank " + text(rank));
}

Mesh::Dense Mesh::dense(int64_t rank) const {
  require_rank(rank);
  Dense at;
  at.tp = rank % dense_.tp;
  rank /= dense_.tp;
  at.cp = rank % dense_.cp;
  rank /= dense_.cp;
  at.dp_shard = rank % dense_.dp_shard;
  rank /= dense_.dp_shard;
  at.dp_replicate = rank % dense_.dp_replicate;
  at.pp = rank / dense_.dp_replicate;
  return at;
}

Mesh::Sparse Mesh::sparse(int64_t rank) const {
  require_rank(rank);
  const int64_t expert_ranks = sparse_.ep_shard * sparse_.ep;
  return {rank / expert_ranks, rank % expert_ranks / sparse_.ep, rank % sparse_.ep};
}

}  // namespace lapidary
