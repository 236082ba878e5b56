#include "lapidary/ops/cuda/column_sums.h"
#include "lapidary/ops/cuda/cuda.h"
#include "lapidary/ops/cuda/rows.cuh"

namespace lapidary::ops::cuda {
namespace {

constexpr int kThreads = 256;

// Tables have few elements: double precision costs nothing that shows, and gives the cpu's values.
__global__ void __launch_bounds__(kFlatThreads)
    rope_table_kernel(const int64_t* positions, const double* inv_freq, Rows<float> cos,
                      Rows<float> sin, int64_t count, int64_t half) {
  const int64_t index = flat_chunk<1>(0);
  if (index >= count) return;
  const int64_t row = quotient(index, half), j = index - row * half;
  // The product is rounded to float, as the reference has it; its cosine is then exact.
  const float product = static_cast<float>(positions[row]) * static_cast<float>(inv_freq[j]);
  double sine = 0.0, cosine = 1.0;
  if (product != 0.0F) sincos(static_cast<double>(product), &sine, &cosine);
  cos.row(row)[j] = static_cast<float>(cosine);
  sin.row(row)[j] = static_cast<float>(sine);
}

// A tensor [N, heads, D].
template <class T>
struct Heads {
  T* data = nullptr;
  int64_t token = 0, head = 0;
  __device__ T* row(int64_t t, int64_t h) const { return data + t * token + h * head; }
};
template <class T>
Heads<const T> heads_of(const ConstTensor& t) {
  return {data<T>(t), t.stride(0), t.stride(1)};
}
template <class T>
Heads<T> heads_of(const Tensor& t) {
  return {data<T>(t), t.stride(0), t.stride(1)};
}

// What both directions read. A row is one head of one token: row = token * heads + head.
struct Rotation {
  Rows<const float> cos, sin;
  Factors w;
  int64_t rows = 0, heads = 1;
  int half = 0;
};
Rotation rotation_of(const char* op, const ConstTensor& x, const ConstTensor& w,
                     const ConstTensor& cos, const ConstTensor& sin) {
  if (x.dim(2) > INT_MAX / 2) fail(op, "heads of " + std::to_string(x.dim(2)) + " are too wide");
  return {.cos = rows_of<float>(cos),
          .sin = rows_of<float>(sin),
          .w = factors_of(op, w),
          .rows = x.dim(0) * x.dim(1),
          .heads = x.dim(1),
          .half = static_cast<int>(x.dim(2) / 2)};
}

// A team of kLanes lanes holds a row: each lane kHeld columns of the first half and their partners
// in the second. Wider rows, and those that wide accesses do not fit, go another way.
constexpr int kHeld = 8;
constexpr int kWidestHeld = 2 * 32 * kHeld;

template <int kLanes>
struct Team {
  int lane;
  int64_t index, count;  // of the teams of the grid
  __device__ Team() {
    constexpr int kTeams = kThreads / kLanes;
    lane = static_cast<int>(threadIdx.x) % kLanes;
    index = static_cast<int64_t>(blockIdx.x) * kTeams + static_cast<int>(threadIdx.x) / kLanes;
    count = static_cast<int64_t>(gridDim.x) * kTeams;
  }
  // Over the team; every lane of the warp calls it.
  __device__ static float sum(float x) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      x += __shfl_xor_sync(0xffffffffU, x, distance);
    }
    return x;
  }
};

// One chunk of the first half and its partner, `first` and `second` in every pair.
template <class T, int kVec>
struct Pair {
  Chunk<T, kVec> first, second;
  __device__ void load(const T* row, int column, int half) {
    first.load(row + column);
    second.load(row + half + column);
  }
};

template <int kVec>
struct Angles {
  Chunk<float, kVec> cos, sin;
  __device__ void load(const Rotation& r, int64_t token, int column) {
    cos.load(r.cos.row(token) + column);
    sin.load(r.sin.row(token) + column);
  }
};

template <class T>
struct Forward {
  Heads<const T> x;
  Heads<T> y;
  Rotation rotation;
  float* rstd = nullptr;
  float eps = 0.0F;
  __device__ float rms_reciprocal(float sum) const {
    return 1.0F / sqrtf(sum / static_cast<float>(2 * rotation.half) + eps);
  }
};

template <class T, int kVec>
__device__ float squares(const Pair<T, kVec>& x) {
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum += x.first[i] * x.first[i] + x.second[i] * x.second[i];
  return sum;
}

template <class T, int kVec>
__device__ void rotate(const Rotation& p, const Pair<T, kVec>& x, const Angles<kVec>& angles,
                       int column, float r, T* to) {
  float w_first[kVec], w_second[kVec], first[kVec], second[kVec];
  p.w.load(column, w_first);
  p.w.load(p.half + column, w_second);
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float u = x.first[i] * r * w_first[i], v = x.second[i] * r * w_second[i];
    first[i] = u * angles.cos[i] - v * angles.sin[i];
    second[i] = v * angles.cos[i] + u * angles.sin[i];
  }
  store_chunk(to + column, first);
  store_chunk(to + p.half + column, second);
}

template <class T, int kVec, int kLanes>
__global__ void __launch_bounds__(kThreads) norm_rope_kernel(Forward<T> p) {
  constexpr int kChunks = kHeld / kVec;
  const Team<kLanes> team;
  const int64_t row = team.index;
  const Rotation& r = p.rotation;
  const int64_t token = quotient(row, r.heads), head = row - token * r.heads;
  const int chunks = row < r.rows ? r.half / kVec : 0;
  Pair<T, kVec> x[kChunks];
  Angles<kVec> angles[kChunks];
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = team.lane + k * kLanes;
    if (c < chunks) x[k].load(p.x.row(token, head), c * kVec, r.half);
  }
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = team.lane + k * kLanes;
    if (c < chunks) angles[k].load(r, token, c * kVec);
  }
  float sum = 0.0F;
#pragma unroll
  for (int k = 0; k < kChunks; ++k) sum += squares(x[k]);
  const float reciprocal = p.rms_reciprocal(team.sum(sum));
#pragma unroll
  for (int k = 0; k < kChunks; ++k) {
    const int c = team.lane + k * kLanes;
    if (c < chunks) rotate(r, x[k], angles[k], c * kVec, reciprocal, p.y.row(token, head));
  }
  if (row < r.rows && p.rstd != nullptr && team.lane == 0) p.rstd[row] = reciprocal;
}

// Any row: a block for each, which reads it twice.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_rope_any_kernel(Forward<T> p) {
  const int64_t row = blockIdx.x;
  const Rotation& r = p.rotation;
  const int64_t token = row / r.heads, head = row - token * r.heads;
  const T* from = p.x.row(token, head);
  Pair<T, 1> x;
  float sum = 0.0F;
  for (auto j = static_cast<int>(threadIdx.x); j < r.half; j += kThreads) {
    x.load(from, j, r.half);
    sum += squares(x);
  }
  const float reciprocal = p.rms_reciprocal(block_sum(sum));
  for (auto j = static_cast<int>(threadIdx.x); j < r.half; j += kThreads) {
    Angles<1> angles;
    x.load(from, j, r.half);
    angles.load(r, token, j);
    rotate(r, x, angles, j, reciprocal, p.y.row(token, head));
  }
  if (p.rstd != nullptr && threadIdx.x == 0) p.rstd[row] = reciprocal;
}

template <class T, class Dy>
struct Backward {
  Heads<const T> x;
  Heads<const Dy> dy;
  Heads<T> dx;
  Rotation rotation;
  const float* rstd = nullptr;
  float* partial = nullptr;  // [blocks, D]; null: dw is not wanted
  bool accumulate_dx = false;
};

// du, the gradient of the normed row, of one pair of chunks.
template <int kVec>
struct Unrotated {
  float first[kVec], second[kVec];
  template <class Dy>
  __device__ void set(const Pair<Dy, kVec>& dy, const Angles<kVec>& angles) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      first[i] = dy.first[i] * angles.cos[i] + dy.second[i] * angles.sin[i];
      second[i] = dy.second[i] * angles.cos[i] - dy.first[i] * angles.sin[i];
    }
  }
};

// Sums for dw of one pair of chunks.
template <int kVec>
struct PairSums {
  float first[kVec] = {}, second[kVec] = {};
};

// Adds du n to the sums, makes du w of du, and returns the sum of du w n / r.
template <class T, int kVec>
__device__ float sum_pair(const Factors& w, int column, int half, const Pair<T, kVec>& x, float r,
                          Unrotated<kVec>& du, PairSums<kVec>& sums) {
  float w_first[kVec], w_second[kVec], sum = 0.0F;
  w.load(column, w_first);
  w.load(half + column, w_second);
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float first = du.first[i] * x.first[i], second = du.second[i] * x.second[i];
    sums.first[i] += first * r;
    sums.second[i] += second * r;
    sum += first * w_first[i] + second * w_second[i];
    du.first[i] *= w_first[i];
    du.second[i] *= w_second[i];
  }
  return sum;
}

template <class T, int kVec>
__device__ void dx_pair(const Pair<T, kVec>& x, const Unrotated<kVec>& g,
                        const Pair<T, kVec>& before, bool accumulate, float r, float mean, T* to,
                        int half) {
  float first[kVec], second[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    first[i] = r * (g.first[i] - x.first[i] * r * mean);
    second[i] = r * (g.second[i] - x.second[i] * r * mean);
    if (accumulate) first[i] += before.first[i], second[i] += before.second[i];
  }
  store_chunk(to, first);
  store_chunk(to + half, second);
}

// What a lane holds of a row.
template <class T, class Dy, int kVec, int kLanes>
struct HeldRow {
  Pair<T, kVec> x[kHeld / kVec];
  Pair<Dy, kVec> dy[kHeld / kVec];
  float r = 0.0F;
  int64_t token = 0, head = 0;
  int chunks = 0;  // of the half row; none where there is no such row

  __device__ void load(const Backward<T, Dy>& p, int lane, int64_t row) {
    const Rotation& rotation = p.rotation;
    chunks = 0;
    if (row >= rotation.rows) return;
    chunks = rotation.half / kVec;
    token = quotient(row, rotation.heads), head = row - token * rotation.heads;
    r = p.rstd[row];
#pragma unroll
    for (int k = 0; k < kHeld / kVec; ++k) {
      const int c = lane + k * kLanes;
      if (c >= chunks) continue;
      x[k].load(p.x.row(token, head), c * kVec, rotation.half);
      dy[k].load(p.dy.row(token, head), c * kVec, rotation.half);
    }
  }
};

// Writes the sums of a block's teams to its partial row.
template <int kVec, int kLanes>
__device__ void store_sums(float* partial, int half, int lane,
                           const PairSums<kVec> (&sums)[kHeld / kVec]) {
  constexpr int kTeams = kThreads / kLanes, kWidth = 2 * kHeld * kLanes;
  __shared__ float of_team[kTeams][kWidth];
#pragma unroll
  for (int k = 0; k < kHeld / kVec; ++k) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const int j = (lane + k * kLanes) * kVec + i;
      of_team[threadIdx.x / kLanes][j] = sums[k].first[i];
      of_team[threadIdx.x / kLanes][j + kWidth / 2] = sums[k].second[i];
    }
  }
  __syncthreads();
  float* to = partial + static_cast<int64_t>(blockIdx.x) * 2 * half;
  for (auto j = static_cast<int>(threadIdx.x); j < 2 * half; j += kThreads) {
    const int at = j < half ? j : j - half + kWidth / 2;
    float sum = 0.0F;
#pragma unroll
    for (int team = 0; team < kTeams; ++team) sum += of_team[team][at];
    to[j] = sum;
  }
}

// A block owns rows for good; each team reads its next row while it works on one. The teams of a
// warp take the same number of turns, the last of them perhaps without a row.
template <class T, class Dy, int kVec, int kLanes>
__global__ void __launch_bounds__(kThreads, 2) norm_rope_bwd_kernel(Backward<T, Dy> p) {
  constexpr int kChunks = kHeld / kVec, kTeams = kThreads / kLanes;
  const Team<kLanes> team;
  const int half = p.rotation.half;
  PairSums<kVec> sums[kChunks];
  HeldRow<T, Dy, kVec, kLanes> next;
  next.load(p, team.lane, team.index);
  const int64_t first_of_block = static_cast<int64_t>(blockIdx.x) * kTeams;
  for (int64_t done = 0; first_of_block + done < p.rotation.rows; done += team.count) {
    const HeldRow<T, Dy, kVec, kLanes> held = next;
    T* dx = p.dx.row(held.token, held.head);
    Angles<kVec> angles[kChunks];
    Pair<T, kVec> before[kChunks];
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int c = team.lane + k * kLanes;
      if (c >= held.chunks) continue;
      angles[k].load(p.rotation, held.token, c * kVec);
      if (p.accumulate_dx) before[k].load(dx, c * kVec, half);
    }
    next.load(p, team.lane, team.index + done + team.count);
    float sum = 0.0F;
    Unrotated<kVec> g[kChunks];
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int c = team.lane + k * kLanes;
      if (c >= held.chunks) continue;
      g[k].set(held.dy[k], angles[k]);
      sum += sum_pair(p.rotation.w, c * kVec, half, held.x[k], held.r, g[k], sums[k]);
    }
    const float mean = held.r * team.sum(sum) / static_cast<float>(2 * half);
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const int c = team.lane + k * kLanes;
      if (c >= held.chunks) continue;
      dx_pair(held.x[k], g[k], before[k], p.accumulate_dx, held.r, mean, dx + c * kVec, half);
    }
  }
  if (p.partial != nullptr) store_sums<kVec, kLanes>(p.partial, half, team.lane, sums);
}

// Any row: a block for each at a time, which reads it twice and keeps the sums in its partial row.
template <class T, class Dy>
__global__ void __launch_bounds__(kThreads) norm_rope_bwd_any_kernel(Backward<T, Dy> p) {
  const Rotation& rotation = p.rotation;
  const int half = rotation.half;
  float* partial = p.partial + static_cast<int64_t>(blockIdx.x) * 2 * half;
  for (int64_t row = blockIdx.x; row < rotation.rows; row += gridDim.x) {
    const int64_t token = row / rotation.heads, head = row - token * rotation.heads;
    const float r = p.rstd[row];
    float mean = 0.0F;
    for (int pass = 0; pass < 2; ++pass) {
      const bool writes = pass == 1;
      float sum = 0.0F;
      for (auto j = static_cast<int>(threadIdx.x); j < half; j += kThreads) {
        Pair<T, 1> x, before;
        Pair<Dy, 1> dy;
        Angles<1> angles;
        PairSums<1> sums;
        x.load(p.x.row(token, head), j, half);
        dy.load(p.dy.row(token, head), j, half);
        angles.load(rotation, token, j);
        Unrotated<1> g;
        g.set(dy, angles);
        sum += sum_pair(rotation.w, j, half, x, r, g, sums);
        if (writes) {
          T* dx = p.dx.row(token, head);
          if (p.accumulate_dx) before.load(dx, j, half);
          dx_pair(x, g, before, p.accumulate_dx, r, mean, dx + j, half);
        } else if (p.partial != nullptr) {
          const bool fresh = row == blockIdx.x;
          partial[j] = (fresh ? 0.0F : partial[j]) + sums.first[0];
          partial[j + half] = (fresh ? 0.0F : partial[j + half]) + sums.second[0];
        }
      }
      if (!writes) mean = r * block_sum(sum) / static_cast<float>(2 * half);
    }
  }
}

// f(kLanes as a constant) for rows that a team holds.
template <class F>
void by_lanes(int half, F&& f) {
  if (half <= 16 * kHeld) return f(std::integral_constant<int, 16>{});
  f(std::integral_constant<int, 32>{});
}

template <class T>
void forward(Context& ctx, const NormRopeArgs& a) {
  const Forward<T> p = {.x = heads_of<T>(a.x),
                        .y = heads_of<T>(a.y),
                        .rotation = rotation_of("norm_rope", a.x, a.w, a.cos, a.sin),
                        .rstd = data<float>(a.rstd),
                        .eps = static_cast<float>(a.eps)};
  constexpr int kVec = kWide<T>;
  const int64_t rows = p.rotation.rows;
  if (a.x.dim(2) <= kWidestHeld && p.rotation.half % kVec == 0 &&
      all_chunks_fit(kVec, a.x, a.y, a.w, a.cos, a.sin)) {
    by_lanes(p.rotation.half, [&]<int kLanes>(std::integral_constant<int, kLanes>) {
      const auto blocks = static_cast<unsigned>(ceil_div(rows, kThreads / kLanes));
      norm_rope_kernel<T, kVec, kLanes><<<blocks, kThreads, 0, ctx.stream>>>(p);
    });
  } else {
    norm_rope_any_kernel<T><<<static_cast<unsigned>(rows), kThreads, 0, ctx.stream>>>(p);
  }
  check_launch("norm_rope");
}

template <class T, class Dy>
void backward(Context& ctx, const NormRopeBwdArgs& a, float* partial) {
  const Backward<T, Dy> p = {.x = heads_of<T>(a.x),
                             .dy = heads_of<Dy>(a.dy),
                             .dx = heads_of<T>(a.dx),
                             .rotation = rotation_of("norm_rope_bwd", a.x, a.w, a.cos, a.sin),
                             .rstd = data<float>(a.rstd),
                             .partial = partial,
                             .accumulate_dx = a.accumulate_dx};
  constexpr int kVec = kWide<T, Dy>;
  const int64_t rows = p.rotation.rows;
  int64_t blocks = partial_count(rows);
  if (a.x.dim(2) <= kWidestHeld && p.rotation.half % kVec == 0 &&
      all_chunks_fit(kVec, a.x, a.dy, a.dx, a.w, a.cos, a.sin)) {
    by_lanes(p.rotation.half, [&]<int kLanes>(std::integral_constant<int, kLanes>) {
      blocks = partial_count(ceil_div(rows, kThreads / kLanes));
      norm_rope_bwd_kernel<T, Dy, kVec, kLanes>
          <<<static_cast<unsigned>(blocks), kThreads, 0, ctx.stream>>>(p);
    });
  } else {
    norm_rope_bwd_any_kernel<T, Dy><<<static_cast<unsigned>(blocks), kThreads, 0, ctx.stream>>>(p);
  }
  check_launch("norm_rope_bwd");
  if (partial != nullptr) {
    add_partials(ctx, "norm_rope_bwd", partial, blocks, a.x.dim(2), data<float>(a.dw));
  }
}

}  // namespace

void rope_table(Context& ctx, const RopeTableArgs& a) {
  const int64_t half = a.inv_freq.dim(0), count = a.positions.dim(0) * half;
  if (count == 0) return;
  if (a.cos.dtype() != Dtype::f32) fail("rope_table", "makes tables of f32 on the GPU");
  rope_table_kernel<<<flat_blocks(count, 1), kFlatThreads, 0, ctx.stream>>>(
      data<int64_t>(a.positions), data<double>(a.inv_freq), rows_of<float>(a.cos),
      rows_of<float>(a.sin), count, half);
  check_launch("rope_table");
}

void norm_rope(Context& ctx, const NormRopeArgs& a) {
  if (a.x.numel() == 0) return;
  by_dtype("norm_rope", a.x.dtype(), [&]<class T>(T) { forward<T>(ctx, a); });
}

void norm_rope_bwd(Context& ctx, const NormRopeBwdArgs& a) {
  if (a.x.numel() == 0) return;
  const ArenaScope scope(ctx.scratch);
  float* partial = nullptr;
  if (a.dw.defined()) {
    partial = data<float>(ctx.scratch.alloc(Dtype::u8, {norm_rope_bwd_scratch_bytes(a)}));
  }
  by_dtype("norm_rope_bwd", a.x.dtype(), [&]<class T>(T) {
    if (a.dy.dtype() == a.x.dtype()) return backward<T, T>(ctx, a, partial);
    backward<T, float>(ctx, a, partial);
  });
}

}  // namespace lapidary::ops::cuda
