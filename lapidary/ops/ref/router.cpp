#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lapidary/ops/moe.h"
#include "lapidary/ops/ref/ref.h"
#include "lapidary/ops/ref/scalar.h"

namespace lapidary::ops::ref {
namespace {

// The ids of the k largest, largest first; of equal values the lowest id first.
template <class T>
void select_largest(const std::vector<T>& logits, int64_t k, int32_t* ids) {
  std::vector<bool> taken(logits.size());
  for (int64_t n = 0; n < k; ++n) {
    size_t best = logits.size();
    for (size_t e = 0; e < logits.size(); ++e) {
      if (taken[e]) continue;
      if (best == logits.size() || real_part(logits[e]) > real_part(logits[best])) best = e;
    }
    taken[best] = true;
    ids[n] = static_cast<int32_t>(best);
  }
}

// share_k = p_k / sum of the selected p: the normaliser of the softmax cancels, so it is a softmax
// over the selected logits.
template <class T>
void renormalise(const std::vector<T>& logits, int64_t k, const int32_t* ids, T* shares) {
  double top = -std::numeric_limits<double>::infinity();
  for (int64_t n = 0; n < k; ++n) {
    top = std::max(top, real_part(logits[static_cast<size_t>(ids[n])]));
  }
  T sum{};
  for (int64_t n = 0; n < k; ++n) {
    shares[n] = std::exp(logits[static_cast<size_t>(ids[n])] - top);
    sum += shares[n];
  }
  for (int64_t n = 0; n < k; ++n) shares[n] /= sum;
}

template <class T>
void run(const RouterArgs& args) {
  const int64_t hidden = args.u.dim(1), experts = args.proj.dim(0), k = args.indices.dim(1);
  const double norm = 1.0 / std::sqrt(static_cast<double>(hidden));
  const T* scale = args.scale.as<T>();
  const T* per_expert = args.per_expert_scale.as<T>();
  T* rstd = elements<T>(args.rstd);
  std::vector<T> z(static_cast<size_t>(hidden)), logits(static_cast<size_t>(experts));
  for (int64_t t = 0; t < args.u.dim(0); ++t) {
    const T* u = row<T>(args.u, t);
    const T r = 1.0 / std::sqrt(dot(u, u, hidden) / static_cast<double>(hidden) + args.eps);
    if (rstd != nullptr) rstd[t] = r;
    for (int64_t j = 0; j < hidden; ++j) z[static_cast<size_t>(j)] = u[j] * r * scale[j] * norm;
    for (int64_t e = 0; e < experts; ++e) {
      logits[static_cast<size_t>(e)] = dot(z.data(), row<T>(args.proj, e), hidden);
    }
    int32_t* ids = row<int32_t>(args.indices, t);
    T* shares = row<T>(args.shares, t);
    if (args.select) select_largest(logits, k, ids);
    renormalise(logits, k, ids, shares);
    T* weights = row<T>(args.weights, t);
    for (int64_t n = 0; n < k; ++n) weights[n] = shares[n] * per_expert[ids[n]];
  }
}

// dl of the selected experts of token t; also adds the token's part of dper_expert_scale.
template <class T>
std::vector<T> selected_logits_bwd(const RouterBwdArgs& args, int64_t t) {
  const int64_t k = args.indices.dim(1);
  const int32_t* ids = row<int32_t>(args.indices, t);
  const int32_t* pair_row = row<int32_t>(args.pair_row, t);
  const T* shares = row<T>(args.shares, t);
  const T* per_expert = args.per_expert_scale.as<T>();
  const T* drow_weight = args.drow_weight.as<T>();
  T* dper_expert = elements<T>(args.dper_expert_scale);
  std::vector<T> dl(static_cast<size_t>(k));
  T mean{};
  for (int64_t n = 0; n < k; ++n) {
    const T dw = pair_row[n] < 0 ? T{} : drow_weight[pair_row[n]];
    if (dper_expert != nullptr) dper_expert[ids[n]] += dw * shares[n];
    dl[static_cast<size_t>(n)] = dw * per_expert[ids[n]];
    mean += dl[static_cast<size_t>(n)] * shares[n];
  }
  for (int64_t n = 0; n < k; ++n) {
    dl[static_cast<size_t>(n)] = shares[n] * (dl[static_cast<size_t>(n)] - mean);
  }
  return dl;
}

template <class T>
void run(const RouterBwdArgs& args) {
  const int64_t hidden = args.u.dim(1), k = args.indices.dim(1);
  const double norm = 1.0 / std::sqrt(static_cast<double>(hidden));
  const T* scale = args.scale.as<T>();
  T* dscale = elements<T>(args.dscale);
  for (int64_t t = 0; t < args.u.dim(0); ++t) {
    const T* u = row<T>(args.u, t);
    const T r = args.rstd.as<T>()[t];
    const std::vector<T> dl = selected_logits_bwd<T>(args, t);
    std::vector<T> g(static_cast<size_t>(hidden));  // dz, then the gradient of n
    for (int64_t n = 0; n < k; ++n) {
      const int64_t e = row<int32_t>(args.indices, t)[n];
      const T* proj = row<T>(args.proj, e);
      T* dproj = args.dproj.defined() ? row<T>(args.dproj, e) : nullptr;
      for (int64_t j = 0; j < hidden; ++j) {
        g[static_cast<size_t>(j)] += dl[static_cast<size_t>(n)] * proj[j] * norm;
        if (dproj != nullptr) dproj[j] += dl[static_cast<size_t>(n)] * u[j] * r * scale[j] * norm;
      }
    }
    T mean{};
    for (int64_t j = 0; j < hidden; ++j) {
      T& gj = g[static_cast<size_t>(j)];
      if (dscale != nullptr) dscale[j] += gj * u[j] * r;
      gj *= scale[j];
      mean += gj * u[j] * r;
    }
    mean /= static_cast<double>(hidden);
    T* du = row<T>(args.du, t);
    for (int64_t j = 0; j < hidden; ++j) du[j] += r * (g[static_cast<size_t>(j)] - u[j] * r * mean);
  }
}

}  // namespace

void router(Context&, const RouterArgs& a) {
  with_scalar("router", a.u.dtype(), [&]<class T>(T) { run<T>(a); });
}

void router_bwd(Context&, const RouterBwdArgs& a) {
  with_scalar("router_bwd", a.u.dtype(), [&]<class T>(T) { run<T>(a); });
}

}  // namespace lapidary::ops::ref
