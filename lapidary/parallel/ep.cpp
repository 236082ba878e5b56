#include "lapidary/parallel/ep.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "lapidary/core/error.h"
#include "lapidary/ops/moe.h"

namespace lapidary {
namespace {

std::span<const int64_t> counts(const Tensor& t) {
  return {t.as<int64_t>(), static_cast<size_t>(t.dim(0))};
}

int64_t sum(const Tensor& t) {
  int64_t total = 0;
  for (const int64_t n : counts(t)) total += n;
  return total;
}

template <class T>
T* row(const Tensor& t, int64_t i) {
  return t.as<T>() + i * t.stride(0);
}

template <class T>
const T* row(const ConstTensor& t, int64_t i) {
  return t.as<T>() + i * t.stride(0);
}

}  // namespace

ExpertParallel::ExpertParallel(ProcessGroup* group, int64_t experts)
    : group_(group != nullptr && group->size() > 1 ? group : nullptr), total_(experts) {
  if (group_ != nullptr && group_->size() > experts) {
    fail("expert parallelism",
         std::to_string(group_->size()) + " ranks for " + std::to_string(experts) + " experts",
         "use an ep_size of at most the number of experts");
  }
  experts_ = active() ? dealt(experts, group_->size(), group_->rank()) : Interval{0, experts};
}

int64_t ExpertParallel::top_k_here(int64_t top_k) const { return std::min(top_k, experts_.size()); }

ExpertParallel::Plan ExpertParallel::alloc(Context& ctx, int64_t tokens, int64_t top_k,
                                           Dtype weights) const {
  if (ctx.target == Backend::cuda) {
    fail("expert parallelism", "expert parallelism on a GPU is not in this version",
         "use ep_size: 1 or the cpu backend");
  }
  const int64_t ranks = group_->size();
  std::array<int64_t, 1> all{tokens * (ctx.backend == Backend::meta ? ranks : 1)};
  if (ctx.backend != Backend::meta) group_->all_reduce(all);
  Arena& arena = ctx.activations;
  return {.send_rows = arena.alloc(Dtype::i64, {ranks}),
          .recv_rows = arena.alloc(Dtype::i64, {ranks}),
          .token_row = arena.alloc(Dtype::i32, {tokens, ranks}),
          .row_token = arena.alloc(Dtype::i32, {tokens * std::min(ranks, top_k)}),
          .row_count = arena.alloc(Dtype::i32, {1}),
          .ids = arena.alloc(Dtype::i32, {all[0], top_k}),
          .weights = arena.alloc(weights, {all[0], top_k}),
          .pairs = all[0] * top_k_here(top_k)};
}

// Rows are numbered rank by rank, tokens ascending within one.
void ExpertParallel::route(const Choice& choice, Plan& plan) const {
  const int64_t tokens = choice.indices.dim(0), top_k = choice.indices.dim(1);
  const int64_t ranks = group_->size();
  const uint8_t* valid = choice.token_valid.defined() ? choice.token_valid.as<uint8_t>() : nullptr;
  int64_t* send = plan.send_rows.as<int64_t>();
  std::fill_n(send, ranks, 0);
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t* chosen = row<int32_t>(choice.indices, t);
    int32_t* rows = row<int32_t>(plan.token_row, t);
    std::fill_n(rows, ranks, -1);
    if (valid != nullptr && valid[t] == 0) continue;
    for (int64_t k = 0; k < top_k; ++k) {
      if (chosen[k] < 0 || chosen[k] >= total_) {
        fail("expert parallelism", "expert " + std::to_string(chosen[k]) + " of token " +
                                       std::to_string(t) + " is not one of " +
                                       std::to_string(total_));
      }
      const int64_t r = dealt_to(total_, ranks, chosen[k]);
      if (rows[r] < 0) rows[r] = static_cast<int32_t>(send[r]++);
    }
  }
  plan.row_token = plan.row_token.slice(0, 0, sum(plan.send_rows));
  *plan.row_count.as<int32_t>() = static_cast<int32_t>(plan.sent());
  int32_t* row_token = plan.row_token.as<int32_t>();
  int32_t first = 0;
  for (int64_t r = 0; r < ranks; ++r) {
    for (int64_t t = 0; t < tokens; ++t) {
      int32_t& at = row<int32_t>(plan.token_row, t)[r];
      if (at < 0) continue;
      at += first;
      row_token[at] = static_cast<int32_t>(t);
    }
    first += static_cast<int32_t>(send[r]);
  }
}

void ExpertParallel::exchange_counts(Context& ctx, Plan& plan) const {
  const ArenaScope scope(ctx.scratch);
  const Tensor one = ctx.scratch.alloc(Dtype::i64, {group_->size()});
  std::fill_n(one.as<int64_t>(), one.numel(), 1);
  group_->all_to_all_v(plan.send_rows, counts(one), plan.recv_rows, counts(one));
  const int64_t received = sum(plan.recv_rows);
  if (received > plan.received()) {
    fail("expert parallelism", std::to_string(received) + " rows arrive where at most " +
                                   std::to_string(plan.received()) + " were expected");
  }
  plan.ids = plan.ids.slice(0, 0, received);
  plan.weights = plan.weights.slice(0, 0, received);
}

void ExpertParallel::exchange_choice(Context& ctx, const Choice& choice, Plan& plan) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t top_k = choice.indices.dim(1), width = size_of(choice.weights.dtype());
  const Tensor ids = ctx.scratch.alloc(Dtype::i32, {plan.sent(), top_k});
  const Tensor weights = ctx.scratch.alloc(choice.weights.dtype(), ids.shape());
  if (ctx.backend == Backend::meta) return;
  char* to = static_cast<char*>(weights.data());
  const char* from = static_cast<const char*>(choice.weights.data());
  if (plan.sent() > 0) std::memset(to, 0, static_cast<size_t>(weights.bytes()));
  int64_t s = 0;
  for (int64_t r = 0; r < group_->size(); ++r) {
    const Interval there = dealt(total_, group_->size(), r);
    for (const int64_t end = s + counts(plan.send_rows)[static_cast<size_t>(r)]; s < end; ++s) {
      const int64_t t = plan.row_token.as<int32_t>()[s];
      for (int64_t k = 0; k < top_k; ++k) {
        const int64_t e = row<int32_t>(choice.indices, t)[k];
        const bool goes = e >= there.begin && e < there.end;
        row<int32_t>(ids, s)[k] = goes ? static_cast<int32_t>(e - there.begin) : -1;
        if (!goes) continue;
        std::memcpy(to + (s * top_k + k) * width, from + (t * choice.weights.stride(0) + k) * width,
                    static_cast<size_t>(width));
      }
    }
  }
  Pending first =
      group_->start_all_to_all_v(ids, counts(plan.send_rows), plan.ids, counts(plan.recv_rows));
  group_->all_to_all_v(weights, counts(plan.send_rows), plan.weights, counts(plan.recv_rows));
  first.wait();
}

void ExpertParallel::plan(Context& ctx, const Choice& choice, Plan& plan) const {
  const ProfileScope profile(ctx.profiler, "ep_plan");
  if (ctx.backend == Backend::meta) {
    {
      const ArenaScope scope(ctx.scratch);
      ctx.scratch.alloc(Dtype::i64, {group_->size()});
    }
    exchange_choice(ctx, choice, plan);
    return;
  }
  route(choice, plan);
  exchange_counts(ctx, plan);
  exchange_choice(ctx, choice, plan);
  const int32_t* ids = plan.ids.as<int32_t>();
  plan.pairs = plan.ids.numel() - std::count(ids, ids + plan.ids.numel(), -1);
}

Pending ExpertParallel::start_dispatch(Context& ctx, const Plan& plan, const ConstTensor& x,
                                       const Tensor& sent, const Tensor& out) const {
  ops::moe_gather(ctx,
                  {.x = x, .row_token = plan.row_token, .offsets = plan.row_count, .out = sent});
  if (ctx.backend == Backend::meta) return {};
  return group_->start_all_to_all_v(sent, counts(plan.send_rows), out, counts(plan.recv_rows));
}

void ExpertParallel::combine(Context& ctx, const Plan& plan, const ConstTensor& rows,
                             const Tensor& returned, const Tensor& out) const {
  if (ctx.backend != Backend::meta) {
    const ProfileScope profile(ctx.profiler, "ep_combine");
    group_->all_to_all_v(rows, counts(plan.recv_rows), returned, counts(plan.send_rows));
  }
  ops::moe_combine(ctx, {.y = returned, .pair_row = plan.token_row, .out = out});
}

}  // namespace lapidary
