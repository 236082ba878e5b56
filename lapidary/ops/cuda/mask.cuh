#pragma once

#include "lapidary/ops/cuda/device.cuh"
#include "lapidary/ops/mask.h"

namespace lapidary::ops::cuda {

// MaskSpec as kernels read it: same rules, same names. Passed by value.
struct DeviceMask {
  template <class T>
  struct Plane {  // [B, n], any strides; data null: undefined
    const T* data = nullptr;
    int64_t row = 0, column = 0;
    __device__ T at(int64_t b, int64_t i) const { return data[b * row + i * column]; }
  };
  bool sliding = false;
  ImageRule image_rule = ImageRule::google;
  int window = 0, offset = 0;  // offset: index of query 0 minus index of key 0
  int keys = 0;
  Plane<uint8_t> key_valid;
  Plane<int32_t> query_docs, key_docs, query_blocks, key_blocks;
  const uint8_t* dense = nullptr;
  int64_t dense_row = 0, dense_query = 0, dense_key = 0;

  static DeviceMask of(const MaskSpec& mask, int64_t keys) {
    DeviceMask out;
    out.sliding = mask.sliding;
    out.image_rule = mask.image_rule;
    // Beyond 2^30 a window hides nothing that an int can index.
    out.window = static_cast<int>(mask.window < (1 << 30) ? mask.window : (1 << 30));
    out.offset = static_cast<int>(mask.query_offset - mask.key_offset);
    out.keys = static_cast<int>(keys);
    out.key_valid = plane<uint8_t>(mask.key_valid);
    out.query_docs = plane<int32_t>(mask.query_docs);
    out.key_docs = plane<int32_t>(mask.key_docs);
    out.query_blocks = plane<int32_t>(mask.query_blocks);
    out.key_blocks = plane<int32_t>(mask.key_blocks);
    if (mask.dense.defined()) {
      out.dense = data<uint8_t>(mask.dense);
      out.dense_row = mask.dense.stride(0);
      out.dense_query = mask.dense.stride(1);
      out.dense_key = mask.dense.stride(2);
    }
    return out;
  }

  // True when visibility follows from the two indices alone.
  __host__ __device__ bool by_index() const {
    return dense == nullptr && key_valid.data == nullptr && query_docs.data == nullptr &&
           query_blocks.data == nullptr;
  }

  // MaskSpec::visible.
  __device__ bool visible(int b, int s, int t) const {
    if (dense != nullptr) {
      return dense[b * dense_row + s * dense_query + t * dense_key] != 0;
    }
    if (key_valid.data != nullptr && key_valid.at(b, t) == 0) return false;
    if (query_docs.data != nullptr) {
      const int32_t doc = key_docs.at(b, t);
      if (doc <= 0 || doc != query_docs.at(b, s)) return false;
    }
    const int distance = s + offset - t;  // how far the key lies behind the query
    bool same = false;
    if (query_blocks.data != nullptr) {
      const int32_t block = query_blocks.at(b, s);
      same = block >= 0 && block == key_blocks.at(b, t);
    }
    const bool causal = distance >= 0;
    if (!sliding) return causal || (image_rule == ImageRule::transformers_5_8 && same);
    const bool in_window = distance < window;
    if (image_rule == ImageRule::google) return (causal || same) && in_window;
    return (causal && in_window) || same;
  }

  // Every key that queries [s0, s1) see lies in [first, last); the range may hold blind ones.
  // Exact at its ends when visibility goes by index.
  struct Range {
    int first, last;
  };
  __device__ Range key_range(int b, int s0, int s1) const {
    if (dense != nullptr) return {0, keys};
    bool image = false;
    if (query_blocks.data != nullptr) {
      for (int s = s0; s < s1 && !image; ++s) image = query_blocks.at(b, s) >= 0;
    }
    const int last = image ? keys : clamp(s1 + offset);
    const bool window_rules = sliding && (!image || image_rule == ImageRule::google);
    return {window_rules ? min(clamp(s0 + offset - window + 1), last) : 0, last};
  }
  // The other way round: every query that sees a key of [t0, t1) lies in [first, last) of [0,
  // queries).
  __device__ Range query_range(int b, int t0, int t1, int queries) const {
    if (dense != nullptr) return {0, queries};
    bool image = false;
    if (key_blocks.data != nullptr) {
      for (int t = t0; t < t1 && !image; ++t) image = key_blocks.at(b, t) >= 0;
    }
    const auto within = [queries](int s) { return s < 0 ? 0 : (s > queries ? queries : s); };
    const int first = image ? 0 : within(t0 - offset);
    const bool window_rules = sliding && (!image || image_rule == ImageRule::google);
    return {first, window_rules ? max(within(t1 - 1 - offset + window), first) : queries};
  }
  // True when every pair of [s0, s1) x [t0, t1) is visible; may say false of such a tile when
  // visibility does not go by index.
  __device__ bool all_visible(int s0, int s1, int t0, int t1) const {
    return by_index() && s0 + offset >= t1 - 1 && (!sliding || s1 - 1 + offset - t0 < window);
  }

 private:
  template <class T>
  static Plane<T> plane(const ConstTensor& t) {
    if (!t.defined()) return {};
    return {data<T>(t), t.stride(0), t.stride(1)};
  }
  __device__ int clamp(int t) const { return t < 0 ? 0 : (t > keys ? keys : t); }
};

}  // namespace lapidary::ops::cuda
