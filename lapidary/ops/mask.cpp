#include "lapidary/ops/mask.h"

#include <algorithm>

#include "lapidary/ops/dispatch.h"

namespace lapidary::ops {
namespace {

template <class T>
T at(const ConstTensor& t, int64_t row, int64_t column) {
  return t.as<T>()[row * t.stride(0) + column * t.stride(1)];
}

}  // namespace

bool MaskSpec::visible(int64_t b, int64_t s, int64_t t) const {
  if (dense.defined()) {
    return dense.as<uint8_t>()[b * dense.stride(0) + s * dense.stride(1) + t * dense.stride(2)] !=
           0;
  }
  if (key_valid.defined() && at<uint8_t>(key_valid, b, t) == 0) return false;
  if (query_docs.defined()) {
    const int32_t doc = at<int32_t>(key_docs, b, t);
    if (doc <= 0 || doc != at<int32_t>(query_docs, b, s)) return false;
  }
  const int64_t i = query_offset + s;
  const int64_t j = key_offset + t;
  const bool causal = j <= i;
  bool same = false;
  if (query_blocks.defined()) {
    const int32_t block = at<int32_t>(query_blocks, b, s);
    same = block >= 0 && block == at<int32_t>(key_blocks, b, t);
  }
  if (!sliding) return causal || (image_rule == ImageRule::transformers_5_8 && same);
  const bool in_window = j > i - window;
  if (image_rule == ImageRule::google) return (causal || same) && in_window;
  return (causal && in_window) || same;
}

MaskSpec::Range MaskSpec::key_range(int64_t b, int64_t s, int64_t keys) const {
  if (dense.defined()) return {0, keys};
  const int64_t i = query_offset + s;
  const bool in_image = query_blocks.defined() && at<int32_t>(query_blocks, b, s) >= 0;
  const int64_t last = in_image ? keys : std::clamp<int64_t>(i + 1 - key_offset, 0, keys);
  const bool window_rules = sliding && (!in_image || image_rule == ImageRule::google);
  const int64_t first =
      window_rules ? std::clamp<int64_t>(i - window + 1 - key_offset, 0, last) : 0;
  return {first, last};
}

bool MaskSpec::all_visible(int64_t b, int64_t s0, int64_t s1, int64_t t0, int64_t t1) const {
  if (dense.defined() || key_valid.defined() || query_docs.defined() || query_blocks.defined()) {
    for (int64_t s = s0; s < s1; ++s) {
      for (int64_t t = t0; t < t1; ++t) {
        if (!visible(b, s, t)) return false;
      }
    }
    return true;
  }
  const bool causal = key_offset + t1 - 1 <= query_offset + s0;
  return causal && (!sliding || key_offset + t0 > query_offset + s1 - 1 - window);
}

void check_mask(const MaskSpec& mask, int64_t rows, int64_t queries, int64_t keys) {
  const Check c("attention mask");
  c.optional("dense", mask.dense, {rows, queries, keys}, Dtype::u8);
  c.optional("key_valid", mask.key_valid, {rows, keys}, Dtype::u8);
  c.that(mask.query_docs.defined() == mask.key_docs.defined(), "documents need both sides");
  c.optional("query_docs", mask.query_docs, {rows, queries}, Dtype::i32);
  c.optional("key_docs", mask.key_docs, {rows, keys}, Dtype::i32);
  c.that(mask.query_blocks.defined() == mask.key_blocks.defined(), "image blocks need both sides");
  c.optional("query_blocks", mask.query_blocks, {rows, queries}, Dtype::i32);
  c.optional("key_blocks", mask.key_blocks, {rows, keys}, Dtype::i32);
  c.that(!mask.sliding || mask.window >= 1,
         "window " + std::to_string(mask.window) + " is below 1");
}

}  // namespace lapidary::ops
