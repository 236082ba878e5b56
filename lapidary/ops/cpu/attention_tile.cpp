#include "lapidary/ops/cpu/attention_tile.h"

#include <algorithm>

#include "lapidary/ops/cpu/kernels.h"

namespace lapidary::ops::cpu {

AttentionShape::AttentionShape(const ConstTensor& q, const ConstTensor& k)
    : rows(q.dim(0)),
      queries(q.dim(1)),
      keys(k.dim(1)),
      heads(q.dim(2)),
      groups(k.dim(2)),
      size(q.dim(3)),
      ratio(heads / groups),
      positions(std::clamp<int64_t>(kQueryTile / std::max<int64_t>(ratio, 1), 1,
                                    std::max<int64_t>(queries, 1))),
      height(positions * ratio) {}

KeyRange tile_keys(const MaskSpec& mask, int64_t b, int64_t s0, int64_t s1, int64_t keys) {
  int64_t first = keys, last = 0;
  for (int64_t s = s0; s < s1; ++s) {
    const MaskSpec::Range range = mask.key_range(b, s, keys);
    if (range.first >= range.last) continue;
    first = std::min(first, range.first);
    last = std::max(last, range.last);
  }
  if (first >= last) return {0, 0};
  return {first / kKeyStep * kKeyStep, std::min(keys, (last + kKeyStep - 1) / kKeyStep * kKeyStep)};
}

bool TileMask::look(int64_t b, int64_t s0, int64_t s1, int64_t t0, int64_t t1, int64_t keys) {
  const bool ranges_only = !mask_.dense.defined() && !mask_.key_valid.defined() &&
                           !mask_.query_docs.defined() && !mask_.query_blocks.defined();
  bool any = false;
  for (int64_t s = s0; s < s1; ++s) {
    const MaskSpec::Range range = mask_.key_range(b, s, keys);
    Row& row = ranges_[static_cast<size_t>(s - s0)];
    row.begin = std::clamp(range.first, t0, t1) - t0;
    row.end = std::max(row.begin, std::clamp(range.last, t0, t1) - t0);
    row.visible = nullptr;
    if (!ranges_only && row.begin < row.end) {
      look_at_row(b, s, t0, bytes_ + (s - s0) * kKeyTile, row);
    }
    any = any || row.begin < row.end;
  }
  return any;
}

// MaskSpec::visible for the columns of one row that are in range.
void TileMask::look_at_row(int64_t b, int64_t s, int64_t t0, uint8_t* visible, Row& row) const {
  const int64_t n = row.end - row.begin;
  const int64_t t = t0 + row.begin;
  uint8_t* v = visible + row.begin;
  if (mask_.dense.defined()) {
    const auto& d = mask_.dense;
    range_bytes(v, n, 0, n);
    and_valid(v, d.as<uint8_t>() + b * d.stride(0) + s * d.stride(1) + t, n);
  } else {
    const int64_t i = mask_.query_offset + s - mask_.key_offset - t;  // the query's own column
    const bool google = mask_.image_rule == ImageRule::google;
    // Google's window cuts image blocks too: it is in the range already.
    const bool window = mask_.sliding && !google;
    range_bytes(v, n, window ? i - mask_.window + 1 : 0, i + 1);
    const bool blocks = mask_.sliding || mask_.image_rule == ImageRule::transformers_5_8;
    if (blocks && mask_.query_blocks.defined()) {
      const auto& q = mask_.query_blocks;
      const auto& k = mask_.key_blocks;
      const int32_t block = q.as<int32_t>()[b * q.stride(0) + s];
      if (block >= 0) or_equal(v, k.as<int32_t>() + b * k.stride(0) + t, block, n);
    }
    if (mask_.key_valid.defined()) {
      const auto& valid = mask_.key_valid;
      and_valid(v, valid.as<uint8_t>() + b * valid.stride(0) + t, n);
    }
    if (mask_.query_docs.defined()) {
      const auto& q = mask_.query_docs;
      const auto& k = mask_.key_docs;
      const int32_t doc = q.as<int32_t>()[b * q.stride(0) + s];
      if (doc <= 0) range_bytes(v, n, 0, 0);
      and_equal(v, k.as<int32_t>() + b * k.stride(0) + t, doc, n);
    }
  }
  const int64_t count = count_visible(v, n);
  if (count == 0) {
    row.end = row.begin;
  } else if (count < n) {
    row.visible = v;
  }
}

}  // namespace lapidary::ops::cpu
