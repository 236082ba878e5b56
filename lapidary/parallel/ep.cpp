#include "lapidary/parallel/ep.h"

#include <algorithm>
#include <cstring>

#include "lapidary/core/error.h"
#include "lapidary/ops/moe.h"

namespace lapidary {
namespace {

bool meta(const Context& ctx) { return ctx.backend == Backend::meta; }

Tensor first_rows(const Tensor& t, int64_t rows) { return t.slice(0, 0, rows); }

}  // namespace

int64_t ExpertParallel::max_received(Context& ctx, int64_t tokens) const {
  if (meta(ctx)) return group_->size() * tokens;
  int64_t sum = tokens;
  group_->all_reduce(std::span<int64_t>(&sum, 1));
  return sum;
}

ExpertRoute ExpertParallel::alloc(Context& ctx, int64_t tokens, int64_t max_received, int64_t top_k,
                                  Dtype weights) const {
  if (!on_host(ctx.target)) fail("ep", "expert parallelism on a GPU is not in this version");
  const int64_t ranks = group_->size();
  const int64_t most_sent = tokens * std::min(ranks, top_k);
  Arena& arena = ctx.activations;
  ExpertRoute route;
  route.sent = most_sent;
  route.received = max_received;
  route.send_rows.assign(static_cast<size_t>(ranks), 0);
  route.recv_rows.assign(static_cast<size_t>(ranks), 0);
  route.sent_token = arena.alloc(Dtype::i32, {most_sent});
  route.sent_end = arena.alloc(Dtype::i32, {1});
  route.token_row = arena.alloc(Dtype::i32, {tokens, ranks});
  route.indices = arena.alloc(Dtype::i32, {max_received, top_k});
  route.weights = arena.alloc(weights, {max_received, top_k});
  return route;
}

// Rows by rank, tokens ascending for each.
void ExpertParallel::choose_rows(const Choice& choice, ExpertRoute& route) const {
  const int64_t ranks = group_->size();
  const int64_t tokens = choice.indices.dim(0), top_k = choice.indices.dim(1);
  int32_t* rows = route.token_row.as<int32_t>();
  std::fill_n(rows, tokens * ranks, -1);
  std::fill(route.send_rows.begin(), route.send_rows.end(), 0);
  const uint8_t* valid = choice.token_valid.defined() ? choice.token_valid.as<uint8_t>() : nullptr;
  for (int64_t t = 0; t < tokens; ++t) {
    if (valid != nullptr && valid[t] == 0) continue;
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t expert = choice.indices.as<int32_t>()[t * top_k + k];
      const int64_t to = dealt_to(experts_, ranks, expert);
      if (rows[t * ranks + to] < 0) rows[t * ranks + to] = 0;  // numbered below
    }
  }
  int32_t next = 0;
  for (int64_t to = 0; to < ranks; ++to) {
    for (int64_t t = 0; t < tokens; ++t) {
      int32_t& row = rows[t * ranks + to];
      if (row < 0) continue;
      route.sent_token.as<int32_t>()[next] = static_cast<int32_t>(t);
      ++route.send_rows[static_cast<size_t>(to)];
      row = next++;
    }
  }
  route.sent = next;
  route.sent_end.as<int32_t>()[0] = next;
}

// Ids and weights go with the tokens; an id that means nothing to the rank it goes to is -1.
void ExpertParallel::exchange_choices(Context& ctx, const Choice& choice,
                                      ExpertRoute& route) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t ranks = group_->size(), top_k = choice.indices.dim(1);
  const Dtype dtype = choice.weights.dtype();
  const auto width = static_cast<size_t>(top_k * size_of(dtype));
  const Tensor ids = ctx.scratch.alloc(Dtype::i32, {route.sent, top_k});
  const Tensor weights = ctx.scratch.alloc(dtype, {route.sent, top_k});
  if (meta(ctx)) return;
  int64_t row = 0;
  for (int64_t to = 0; to < ranks; ++to) {
    const Interval there = dealt(experts_, ranks, to);
    for (int64_t i = 0; i < route.send_rows[static_cast<size_t>(to)]; ++i, ++row) {
      const int64_t t = route.sent_token.as<int32_t>()[row];
      for (int64_t k = 0; k < top_k; ++k) {
        const int64_t expert = choice.indices.as<int32_t>()[t * top_k + k];
        const bool here = expert >= there.begin && expert < there.end;
        ids.as<int32_t>()[row * top_k + k] = here ? static_cast<int32_t>(expert - there.begin) : -1;
      }
      std::memcpy(static_cast<char*>(weights.data()) + static_cast<size_t>(row) * width,
                  static_cast<const char*>(choice.weights.data()) + static_cast<size_t>(t) * width,
                  width);
    }
  }
  const auto move = [&](const Tensor& from, const Tensor& to) {
    group_->all_to_all_v(from, route.send_rows, first_rows(to, route.received), route.recv_rows);
  };
  move(ids, route.indices);
  move(weights, route.weights);
}

void ExpertParallel::plan(Context& ctx, const Choice& choice, ExpertRoute& route) const {
  if (!meta(ctx)) {
    choose_rows(choice, route);
    const std::vector<int64_t> one(route.send_rows.size(), 1);
    const Shape shape{group_->size()};
    group_->all_to_all_v(ConstTensor(route.send_rows.data(), Dtype::i64, shape), one,
                         Tensor(route.recv_rows.data(), Dtype::i64, shape), one);
    route.received = 0;
    for (const int64_t rows : route.recv_rows) route.received += rows;
  }
  exchange_choices(ctx, choice, route);
  route.sent_token = first_rows(route.sent_token, route.sent);
  route.indices = first_rows(route.indices, route.received);
  route.weights = first_rows(route.weights, route.received);
}

Pending ExpertParallel::dispatch(Context& ctx, const ExpertRoute& route, const ConstTensor& x,
                                 const Tensor& sent, const Tensor& rows) const {
  ops::moe_gather(ctx,
                  {.x = x, .row_token = route.sent_token, .offsets = route.sent_end, .out = sent});
  if (meta(ctx)) return {};
  return group_->start_all_to_all_v(sent, route.send_rows, rows, route.recv_rows);
}

void ExpertParallel::combine(Context& ctx, const ExpertRoute& route, const ConstTensor& rows,
                             const Tensor& y) const {
  const ArenaScope scope(ctx.scratch);
  const Tensor back = ctx.scratch.alloc(rows.dtype(), {route.sent, rows.dim(1)});
  if (!meta(ctx)) group_->all_to_all_v(rows, route.recv_rows, back, route.send_rows);
  ops::moe_combine(ctx, {.y = back, .pair_row = route.token_row, .out = y});
}

}  // namespace lapidary
