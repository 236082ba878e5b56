#pragma once

#include <vector>

#include "lapidary/comm/process_group.h"
#include "lapidary/core/context.h"
#include "lapidary/core/interval.h"

namespace lapidary {

// How the tokens of one layer travel. Lies in the arena of activations, owned by the caller: a
// layer that runs again travels the same way.
struct ExpertRoute {
  int64_t sent = 0, received = 0;             // rows: S, T'
  std::vector<int64_t> send_rows, recv_rows;  // of each rank
  Tensor sent_token;                          // [S] i32: the token of each row
  Tensor sent_end;                            // [1] i32: S
  Tensor token_row;                           // [T, n] i32: the row sent to each rank, or -1
  Tensor indices;                             // [T', K] i32: this rank's experts from 0, or -1
  Tensor weights;                             // [T', K]
};

// Expert parallelism: E experts are dealt to the n ranks of a group (dealt() in core/interval.h),
// tokens travel to the ranks of the experts that they chose, and results travel back.
//   dispatch   rows [T', H] = the rows x[t] of all ranks' tokens with an expert here, by rank and
//              token: one row per (token, rank), however many of the rank's experts it chose
//   combine    y[t] = sum over the ranks of the rows that came back for token t
// Each is the other's adjoint. Padding does not travel. A rank sends (S - those to itself) rows of
// H elements for a dispatch, and plan() K ids and K weights for each; combine sends back the rows
// that came from other ranks.
class ExpertParallel {
 public:
  ExpertParallel() = default;  // one rank: nothing travels
  ExpertParallel(ProcessGroup& group, int64_t experts) : group_(&group), experts_(experts) {}

  bool distributed() const { return group_ != nullptr && group_->size() > 1; }
  Interval experts() const { return dealt(experts_, group_->size(), group_->rank()); }
  // Most rows that a dispatch can bring to one of the ranks: all tokens of all. Collective.
  int64_t max_received(Context& ctx, int64_t tokens) const;

  // Memory for the route of T tokens with K choices each.
  ExpertRoute alloc(Context& ctx, int64_t tokens, int64_t max_received, int64_t top_k,
                    Dtype weights) const;
  // indices [T, K] i32 of all E experts, weights [T, K], token_valid [T] u8 or undefined.
  // Collective.
  struct Choice {
    ConstTensor indices, weights, token_valid;
  };
  void plan(Context& ctx, const Choice& choice, ExpertRoute& route) const;

  // Starts: x [T, H] -> rows [T', H]. sent [S, H] is filled, and used until the end. Collective.
  Pending dispatch(Context& ctx, const ExpertRoute& route, const ConstTensor& x, const Tensor& sent,
                   const Tensor& rows) const;
  // y [T, H] (written) from rows [T', H]. Collective.
  void combine(Context& ctx, const ExpertRoute& route, const ConstTensor& rows,
               const Tensor& y) const;

 private:
  void choose_rows(const Choice& choice, ExpertRoute& route) const;
  void exchange_choices(Context& ctx, const Choice& choice, ExpertRoute& route) const;

  ProcessGroup* group_ = nullptr;
  int64_t experts_ = 0;
};

}  // namespace lapidary
