#include "lapidary/checkpoint/parts.h"

#include <fmt/format.h>

#include <algorithm>

#include "lapidary/checkpoint/json.h"
#include "lapidary/core/error.h"
#include "lapidary/core/rng.h"

namespace lapidary {
namespace {

constexpr size_t kMaxListed = 20;

struct Piece {
  Interval part;
  int64_t rank = 0;
};

// Sorted pieces of one tensor: "" when each of n elements is in exactly one of them.
std::string complaint(const std::vector<Piece>& pieces, int64_t n) {
  int64_t covered = 0, last = -1;
  for (const Piece& piece : pieces) {
    if (piece.part.begin > covered)
      return fmt::format("its elements {} to {} are written by no rank", covered, piece.part.begin);
    if (piece.part.begin < covered)
      return fmt::format("its elements {} to {} are written by rank {} and by rank {}",
                         piece.part.begin, std::min(covered, piece.part.end), last, piece.rank);
    covered = piece.part.end;
    last = piece.rank;
  }
  if (covered != n) return fmt::format("its elements {} to {} are written by no rank", covered, n);
  return "";
}

}  // namespace

void require_same_tensors(const std::string& where, const std::vector<TensorSource>& tensors,
                          const std::string& stem, int64_t max_shard_bytes, ProcessGroup& group) {
  std::string listed = fmt::format("{} {}\n", stem, max_shard_bytes);
  for (const TensorSource& t : tensors)
    listed += fmt::format("{}\t{}\t{}\t{}\n", t.name, t.scalar ? "scalar" : "", t.shape.str(),
                          name_of(t.target));
  auto mine = static_cast<int64_t>(stream_of(listed.c_str()));
  std::vector<int64_t> all(static_cast<size_t>(group.size()));
  group.all_gather(Tensor(&mine, Dtype::i64, {1}), Tensor(all.data(), Dtype::i64, {group.size()}));
  for (size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      fail(where,
           fmt::format("rank {} gives other tensors to be written than rank 0, or another order",
                       rank));
}

void require_every_element_once(const std::string& where, const std::vector<TensorSource>& tensors,
                                ProcessGroup& group) {
  if (tensors.empty()) return;
  const auto count = static_cast<int64_t>(tensors.size());
  std::vector<int64_t> mine, all(static_cast<size_t>(group.size() * count * 2));
  for (const TensorSource& t : tensors) {
    mine.push_back(t.elements().begin);
    mine.push_back(t.elements().end);
  }
  group.all_gather(Tensor(mine.data(), Dtype::i64, {count, 2}),
                   Tensor(all.data(), Dtype::i64, {group.size() * count, 2}));
  Problems problems;
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < count && problems.messages().size() < kMaxListed; ++i) {
    pieces.clear();
    for (int64_t rank = 0; rank < group.size(); ++rank) {
      const int64_t* at = all.data() + (rank * count + i) * 2;
      if (at[1] > at[0]) pieces.push_back({{at[0], at[1]}, rank});
    }
    std::sort(pieces.begin(), pieces.end(),
              [](const Piece& a, const Piece& b) { return a.part.begin < b.part.begin; });
    const TensorSource& t = tensors[static_cast<size_t>(i)];
    const std::string what = complaint(pieces, t.shape.numel());
    if (!what.empty()) problems.add(where + ": " + in_quotes(t.name), what);
  }
  problems.throw_if_any(where);
}

}  // namespace lapidary
