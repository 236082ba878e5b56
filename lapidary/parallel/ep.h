#pragma once

#include <span>

#include "lapidary/comm/process_group.h"
#include "lapidary/core/context.h"
#include "lapidary/core/interval.h"

namespace lapidary {

// Expert parallelism: the experts are dealt to the ranks of a group, and tokens travel to the ranks
// that hold their experts. A token goes to a rank once, however many of its experts live there;
// padding goes nowhere; what a rank sends to itself is copied. A rank without tokens takes part in
// every exchange. With A the 0/1 matrix that copies a rank's T tokens to the T' rows of all ranks:
//   dispatch   rows = A x     [T, n] -> [T', n]      adjoint: combine
//   combine    x = A^T rows   [T', n] -> [T, n]      adjoint: dispatch
// The received rows are those of rank 0, then rank 1, ..., each in the order of its tokens.
//
// With S rows that leave a rank (its valid tokens, once for each other rank that has an expert of
// theirs), S' rows that come from other ranks, ep ranks, K experts a token and b bytes an element,
// a rank sends by all_to_all_v: plan() 8 (ep - 1) + S K (4 + b of the weights), start_dispatch()
// S n b, combine() S' n b; alloc() all-reduces one i64.
//
// Host memory only: Error on a GPU.
class ExpertParallel {
 public:
  ExpertParallel() = default;  // one rank
  // group: null or of one rank: nothing is exchanged. Otherwise it must outlive this object.
  // Error when there are more ranks than experts.
  ExpertParallel(ProcessGroup* group, int64_t experts);

  // Whether tokens travel at all. The functions below are for groups where they do.
  bool active() const { return group_ != nullptr; }
  Interval experts() const { return experts_; }  // of this rank
  int64_t top_k_here(int64_t top_k) const;       // experts of one token on this rank, at most

  // Where the rows of one layer go. Made once, kept for every exchange of the layer.
  struct Plan {
    Tensor send_rows, recv_rows;  // [ep] i64, to and from each rank
    Tensor token_row;             // [T, ep] i32: row among those sent, -1 where none goes
    Tensor row_token;             // [rows sent] i32, its inverse
    Tensor row_count;             // [1] i32: rows sent
    Tensor ids;                   // [T', K] i32: received experts of this rank from 0 on, -1 others
    Tensor weights;               // [T', K]: received routing weights, 0 of others
    int64_t pairs = 0;            // entries of ids that are not -1
    int64_t sent() const { return row_token.dim(0); }
    int64_t received() const { return ids.dim(0); }
  };
  // Memory from the activation arena for the worst case: every token of the group comes here. All
  // ranks of the group call it together. On the meta backend the other ranks have as many tokens as
  // this one; where they differ, the memory of a step is that of the rank with the most.
  Plan alloc(Context& ctx, int64_t tokens, int64_t top_k, Dtype weights) const;

  struct Choice {
    ConstTensor indices;           // [T, K] i32, different experts for each token
    ConstTensor weights;           // [T, K]
    ConstTensor token_valid = {};  // [T] u8: tokens with 0 are not sent; undefined: all are
  };
  // Fills a plan from alloc() and cuts its tensors to what is used; returns when the choices of all
  // tokens have arrived. On the meta backend the worst case stays.
  void plan(Context& ctx, const Choice& choice, Plan& plan) const;

  // out = A x.   x [T, n]   sent: memory for [sent(), n]   out [T', n]
  // All of them stay as they are until wait() has returned.
  [[nodiscard]] Pending start_dispatch(Context& ctx, const Plan& plan, const ConstTensor& x,
                                       const Tensor& sent, const Tensor& out) const;
  // out = A^T rows, a token's rows added in the order of the ranks in accumulate_dtype and rounded
  // once; zeros for tokens that were not sent.
  //   rows [T', n]   returned: memory for [sent(), n]   out [T, n], written
  void combine(Context& ctx, const Plan& plan, const ConstTensor& rows, const Tensor& returned,
               const Tensor& out) const;

 private:
  void route(const Choice& choice, Plan& plan) const;
  void exchange_counts(Context& ctx, Plan& plan) const;
  void exchange_choice(Context& ctx, const Choice& choice, Plan& plan) const;

  ProcessGroup* group_ = nullptr;
  int64_t total_ = 0;  // experts of all ranks
  Interval experts_;
};

}  // namespace lapidary
