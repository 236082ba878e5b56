#include "lapidary/ops/cuda/column_sums.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/rows.cuh"

namespace lapidary::ops::cuda {
namespace {

// A row belongs to a team: a warp where it is short, else a block. Thread `lane` of `size` has the
// chunks lane, lane + size, ...
template <bool kWarp>
struct Team {
  int lane, size;
  int64_t index, count;  // of the teams of the grid
  __device__ Team() {
    const auto threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    if constexpr (kWarp) {
      lane = thread % 32, size = 32;
      index = static_cast<int64_t>(blockIdx.x) * (threads / 32) + thread / 32;
      count = static_cast<int64_t>(gridDim.x) * (threads / 32);
    } else {
      lane = thread, size = threads;
      index = blockIdx.x, count = gridDim.x;
    }
  }
  __device__ float sum(float x) const {
    if constexpr (kWarp) return warp_sum(x);
    return block_sum(x);
  }
};

// How a kernel goes over rows: kVec elements at a time, of which each thread holds kHeld in
// registers. A warp holds its row whole. What a block of kMostThreads cannot hold is read twice.
template <int kVecs, int kHelds, bool kWarps>
struct Form {
  static constexpr int kVec = kVecs, kHeld = kHelds, kChunks = kHelds / kVecs;
  static constexpr bool kWarp = kWarps;
  static constexpr int kMostThreads = kWarps ? 4096 / kHelds : 768;

  // The threads of a block for rows of n.
  static unsigned threads(int64_t n) {
    if (kWarp) return kMostThreads;
    const int64_t warps = ceil_div(n, 32 * kHeld);
    return static_cast<unsigned>(32 * std::clamp<int64_t>(warps, 1, kMostThreads / 32));
  }
  static int64_t teams(int64_t n) { return kWarp ? threads(n) / 32 : 1; }
};

template <int kWidest, class F>
void by_form(int64_t n, bool wide, F&& f) {
  if (!wide) return n <= 256 ? f(Form<1, 8, true>{}) : f(Form<1, 8, false>{});
  if (n <= 256) return f(Form<kWidest, 8, true>{});
  if (n <= 512) return f(Form<kWidest, 16, true>{});
  f(Form<kWidest, 8, false>{});
}

// Columns are counted in int.
int width(const char* op, const ConstTensor& x) {
  if (x.dim(1) > INT_MAX / 2) fail(op, "rows of " + std::to_string(x.dim(1)) + " are too wide");
  return static_cast<int>(x.dim(1));
}

template <class X, class Y>
struct Forward {
  Rows<const X> x;
  Rows<const Y> residual;
  Rows<Y> y;
  Factors w;
  float* rstd = nullptr;
  int64_t rows = 0;
  int n = 0;
  float eps = 0.0F;
};

template <class X, class Y, int kVec>
__device__ void norm_chunk(const Forward<X, Y>& p, int64_t row, int column, const Chunk<X, kVec>& x,
                           const Chunk<Y, kVec>& residual, const float (&w)[kVec], float r) {
  float y[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    y[i] = x[i] * r * w[i];
    if (p.residual.defined()) y[i] += residual[i];
  }
  store_chunk(p.y.row(row) + column, y);
}

template <class X, class Y, class Form>
__global__ void __launch_bounds__(Form::kMostThreads) rms_norm_kernel(Forward<X, Y> p) {
  constexpr int kVec = Form::kVec, kChunks = Form::kChunks;
  const Team<Form::kWarp> team;
  const int64_t row = team.index;
  const int chunks = p.n / kVec;
  if (row >= p.rows) return;  // a warp without a row; never a block
  const X* from = p.x.row(row);
  Chunk<X, kVec> x[kChunks];
  Chunk<Y, kVec> residual[kChunks];
  float w[kChunks][kVec];
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = team.lane + k * team.size;
    if (c < chunks) x[k].load(from + c * kVec);
  }
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = team.lane + k * team.size;
    if (c >= chunks) continue;
    if (p.residual.defined()) residual[k].load(p.residual.row(row) + c * kVec);
    p.w.load(c * kVec, w[k]);
  }
  float sum = 0.0F;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum += x[k][i] * x[k][i];
  }
  const int beyond = Form::kWarp ? chunks : team.lane + kChunks * team.size;
  for (int c = beyond; c < chunks; c += team.size) {
    Chunk<X, kVec> far;
    far.load(from + c * kVec);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum += far[i] * far[i];
  }
  const float r = 1.0F / sqrtf(team.sum(sum) / static_cast<float>(p.n) + p.eps);
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = team.lane + k * team.size;
    if (c < chunks) norm_chunk(p, row, c * kVec, x[k], residual[k], w[k], r);
  }
  for (int c = beyond; c < chunks; c += team.size) {
    Chunk<X, kVec> far;
    Chunk<Y, kVec> far_residual;
    float far_w[kVec];
    far.load(from + c * kVec);
    if (p.residual.defined()) far_residual.load(p.residual.row(row) + c * kVec);
    p.w.load(c * kVec, far_w);
    norm_chunk(p, row, c * kVec, far, far_residual, far_w, r);
  }
  if (p.rstd != nullptr && team.lane == 0) p.rstd[row] = r;
}

template <class X, class Dy, class Dx>
struct Backward {
  Rows<const X> x;
  Rows<const Dy> dy;
  Rows<Dx> dx;
  Factors w;
  const float* rstd = nullptr;
  float* partial = nullptr;  // [blocks, n]; null: dw is not wanted
  bool accumulate_dx = false;
  int64_t rows = 0;
  int n = 0;
};

// The held part of a row.
template <class X, class Dy, class Form>
struct HeldRow {
  Chunk<X, Form::kVec> x[Form::kChunks];
  Chunk<Dy, Form::kVec> dy[Form::kChunks];
  float r = 0.0F;

  template <class P, class Team>
  __device__ void load(const P& p, const Team& team, int64_t row) {
    if (row >= p.rows) return;
#pragma unroll
    for (int k = 0; k < Form::kChunks; ++k) {
      const int c = team.lane + k * team.size;
      if (c >= p.n / Form::kVec) continue;
      x[k].load(p.x.row(row) + c * Form::kVec);
      dy[k].load(p.dy.row(row) + c * Form::kVec);
    }
    r = p.rstd[row];
  }
};

// sums[i] += dy n of one chunk; returns the sum of g n / r.
template <class X, class Dy, int kVec>
__device__ float sum_chunk(const Chunk<X, kVec>& x, const Chunk<Dy, kVec>& dy,
                           const float (&w)[kVec], float r, float (&sums)[kVec]) {
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float product = dy[i] * x[i];
    sum += product * w[i];
    sums[i] += product * r;
  }
  return sum;
}

template <class X, class Dy, class Dx, int kVec>
__device__ void dx_chunk(Dx* to, bool accumulate, const Chunk<X, kVec>& x,
                         const Chunk<Dy, kVec>& dy, const float (&w)[kVec],
                         const Chunk<Dx, kVec>& before, float r, float mean) {
  float dx[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    dx[i] = r * (dy[i] * w[i] - x[i] * r * mean);
    if (accumulate) dx[i] += before[i];
  }
  store_chunk(to, dx);
}

// The parts of a row that its team does not hold: sums for dw go straight to the partial row.
template <class X, class Dy, class Dx, int kVec>
__device__ float sum_beyond(const Backward<X, Dy, Dx>& p, int64_t row, int first, int step, float r,
                            bool first_row) {
  float sum = 0.0F;
  for (int c = first; c < p.n / kVec; c += step) {
    Chunk<X, kVec> x;
    Chunk<Dy, kVec> dy;
    Chunk<float, kVec> before;
    float w[kVec], sums[kVec];
    x.load(p.x.row(row) + c * kVec);
    dy.load(p.dy.row(row) + c * kVec);
    p.w.load(c * kVec, w);
    float* partial = p.partial + static_cast<int64_t>(blockIdx.x) * p.n + c * kVec;
    if (p.partial != nullptr && !first_row) before.load(partial);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sums[i] = before[i];
    sum += sum_chunk(x, dy, w, r, sums);
    if (p.partial != nullptr) store_chunk(partial, sums);
  }
  return sum;
}

template <class X, class Dy, class Dx, int kVec>
__device__ void dx_beyond(const Backward<X, Dy, Dx>& p, int64_t row, int first, int step, float r,
                          float mean) {
  for (int c = first; c < p.n / kVec; c += step) {
    Chunk<X, kVec> x;
    Chunk<Dy, kVec> dy;
    Chunk<Dx, kVec> before;
    float w[kVec];
    x.load(p.x.row(row) + c * kVec);
    dy.load(p.dy.row(row) + c * kVec);
    p.w.load(c * kVec, w);
    Dx* to = p.dx.row(row) + c * kVec;
    if (p.accumulate_dx) before.load(to);
    dx_chunk(to, p.accumulate_dx, x, dy, w, before, r, mean);
  }
}

// Writes the sums of a block's teams to its partial row.
template <class Form>
__device__ void store_sums(const Team<Form::kWarp>& team, float* partial, int n,
                           const float (&sums)[Form::kChunks][Form::kVec]) {
  constexpr int kVec = Form::kVec;
  float* to = partial + static_cast<int64_t>(blockIdx.x) * n;
  if constexpr (Form::kWarp) {
    constexpr int kWidth = 32 * Form::kHeld;
    __shared__ float of_warp[Form::kMostThreads / 32][kWidth];
#pragma unroll
    for (int k = 0; k < Form::kChunks; ++k) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        of_warp[threadIdx.x / 32][(team.lane + k * 32) * kVec + i] = sums[k][i];
      }
    }
    __syncthreads();
    for (auto j = static_cast<int>(threadIdx.x); j < n; j += static_cast<int>(blockDim.x)) {
      float sum = 0.0F;
      for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) sum += of_warp[warp][j];
      to[j] = sum;
    }
  } else {
#pragma unroll
    for (int k = 0; k < Form::kChunks; ++k) {
      const int c = team.lane + k * team.size;
      if (c < n / kVec) store_chunk(to + c * kVec, sums[k]);
    }
  }
}

// A block owns rows for good; each team reads its next row while it works on one.
template <class X, class Dy, class Dx, class Form>
__global__ void __launch_bounds__(Form::kMostThreads) rms_norm_bwd_kernel(Backward<X, Dy, Dx> p) {
  constexpr int kVec = Form::kVec, kChunks = Form::kChunks;
  const Team<Form::kWarp> team;
  const int chunks = p.n / kVec;
  const int beyond = Form::kWarp ? chunks : team.lane + kChunks * team.size;
  float w[kChunks][kVec] = {}, sums[kChunks][kVec] = {};
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = team.lane + k * team.size;
    if (c < chunks) p.w.load(c * kVec, w[k]);
  }
  HeldRow<X, Dy, Form> next;
  next.load(p, team, team.index);
  for (int64_t row = team.index; row < p.rows; row += team.count) {
    const HeldRow<X, Dy, Form> held = next;
    next.load(p, team, row + team.count);
    Chunk<Dx, kVec> before[kChunks];
    if (p.accumulate_dx) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        const int c = team.lane + k * team.size;
        if (c < chunks) before[k].load(p.dx.row(row) + c * kVec);
      }
    }
    float sum = 0.0F;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      sum += sum_chunk(held.x[k], held.dy[k], w[k], held.r, sums[k]);
    }
    if (beyond < chunks) {
      sum += sum_beyond<X, Dy, Dx, kVec>(p, row, beyond, team.size, held.r, row == team.index);
    }
    if (!p.dx.defined()) continue;
    const float mean = held.r * team.sum(sum) / static_cast<float>(p.n);
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int c = team.lane + k * team.size;
      if (c >= chunks) continue;
      dx_chunk(p.dx.row(row) + c * kVec, p.accumulate_dx, held.x[k], held.dy[k], w[k], before[k],
               held.r, mean);
    }
    if (beyond < chunks) {
      dx_beyond<X, Dy, Dx, kVec>(p, row, beyond, team.size, held.r, mean);
    }
  }
  if (p.partial != nullptr) store_sums<Form>(team, p.partial, p.n, sums);
}

// 32 columns and 32 shares of the partial rows for each block.
__global__ void __launch_bounds__(1024)
    add_partials_kernel(const float* partial, int64_t partials, int64_t columns, float* total) {
  __shared__ float of_share[32][33];
  const int lane = static_cast<int>(threadIdx.x) % 32, share = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0F;
  if (column < columns) {
    for (int64_t i = share; i < partials; i += 32) sum += partial[i * columns + column];
  }
  of_share[share][lane] = sum;
  __syncthreads();
  if (share != 0 || column >= columns) return;
  float all = 0.0F;
#pragma unroll
  for (int i = 0; i < 32; ++i) all += of_share[i][lane];
  total[column] += all;
}

template <class X, class Y>
void forward(Context& ctx, const RmsNormArgs& a) {
  const Forward<X, Y> p = {.x = rows_of<X>(a.x),
                           .residual = rows_of<Y>(a.residual),
                           .y = rows_of<Y>(a.y),
                           .w = factors_of("rms_norm", a.w),
                           .rstd = data<float>(a.rstd),
                           .rows = a.x.dim(0),
                           .n = width("rms_norm", a.x),
                           .eps = static_cast<float>(a.eps)};
  constexpr int kMost = kWide<X, Y>;
  const bool wide = all_chunks_fit(kMost, a.x, a.residual, a.y, a.w);
  by_form<kMost>(p.n, wide, [&]<class Form>(Form) {
    const auto blocks = static_cast<unsigned>(ceil_div(p.rows, Form::teams(p.n)));
    rms_norm_kernel<X, Y, Form><<<blocks, Form::threads(p.n), 0, ctx.stream>>>(p);
  });
  check_launch("rms_norm");
}

template <class X, class Dy, class Dx>
void backward(Context& ctx, const RmsNormBwdArgs& a, float* partial) {
  const Backward<X, Dy, Dx> p = {.x = rows_of<X>(a.x),
                                 .dy = rows_of<Dy>(a.dy),
                                 .dx = rows_of<Dx>(a.dx),
                                 .w = factors_of("rms_norm_bwd", a.w),
                                 .rstd = data<float>(a.rstd),
                                 .partial = partial,
                                 .accumulate_dx = a.dx.defined() && a.accumulate_dx,
                                 .rows = a.x.dim(0),
                                 .n = width("rms_norm_bwd", a.x)};
  constexpr int kMost = kWide<X, Dy, Dx>;
  const bool wide = all_chunks_fit(kMost, a.x, a.dy, a.dx, a.w);
  int64_t blocks = 0;
  by_form<kMost>(p.n, wide, [&]<class Form>(Form) {
    blocks = partial_count(ceil_div(p.rows, Form::teams(p.n)));
    rms_norm_bwd_kernel<X, Dy, Dx, Form>
        <<<static_cast<unsigned>(blocks), Form::threads(p.n), 0, ctx.stream>>>(p);
  });
  check_launch("rms_norm_bwd");
  if (partial != nullptr) {
    add_partials(ctx, "rms_norm_bwd", partial, blocks, p.n, data<float>(a.dw));
  }
}

}  // namespace

void add_partials(Context& ctx, const char* op, const float* partial, int64_t partials,
                  int64_t columns, float* total) {
  const auto blocks = static_cast<unsigned>(ceil_div(columns, 32));
  add_partials_kernel<<<blocks, 1024, 0, ctx.stream>>>(partial, partials, columns, total);
  check_launch(op);
}

void rms_norm(Context& ctx, const RmsNormArgs& a) {
  if (a.x.dim(0) == 0) return;
  by_dtype("rms_norm", a.x.dtype(), [&]<class X>(X) {
    by_dtype("rms_norm", a.y.dtype(), [&]<class Y>(Y) { forward<X, Y>(ctx, a); });
  });
}

void rms_norm_bwd(Context& ctx, const RmsNormBwdArgs& a) {
  if (a.x.numel() == 0) return;
  const ArenaScope scope(ctx.scratch);
  float* partial = nullptr;
  if (a.dw.defined()) {
    partial = data<float>(ctx.scratch.alloc(Dtype::u8, {rms_norm_bwd_scratch_bytes(a)}));
  }
  const Dtype dx_type = a.dx.defined() ? a.dx.dtype() : a.x.dtype();
  by_dtype("rms_norm_bwd", a.x.dtype(), [&]<class X>(X) {
    by_dtype("rms_norm_bwd", a.dy.dtype(), [&]<class Dy>(Dy) {
      by_dtype("rms_norm_bwd", dx_type,
               [&]<class Dx>(Dx) { backward<X, Dy, Dx>(ctx, a, partial); });
    });
  });
}

}  // namespace lapidary::ops::cuda
