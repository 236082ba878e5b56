#pragma once

#include "lapidary/core/context.h"

namespace lapidary::ops {

// How images look at themselves; four definitions are in circulation. "same" = query and key lie
// in one image block, "window" = j > i - W. All of them are and-ed with document and padding.
enum class ImageRule {
  google,            // full: causal               sliding: (causal or same) and window
  transformers_5_8,  // full: causal or same       sliding: (causal and window) or same
  transformers_5_5,  // full: causal               sliding: (causal and window) or same
  automodel_packed,  // as transformers_5_5, as NeMo AutoModel writes it for packed rows
};

// Which keys a query sees: never a dense matrix, unless the caller brings one. Indices count
// positions in the row, not position ids. Query s of the call has index query_offset + s, key t
// has index key_offset + t (a cache holds a part of the row).
struct MaskSpec {
  bool sliding = false;  // false: full attention
  int64_t window = 0;    // W keys, the query's own included; sliding layers only
  int64_t query_offset = 0;
  int64_t key_offset = 0;
  ImageRule image_rule = ImageRule::google;
  ConstTensor key_valid = {};     // [B, T] u8, 0 = padding; undefined: all valid
  ConstTensor query_docs = {};    // [B, S] i32, packed_seq_ids: 1-based document, 0 = padding
  ConstTensor key_docs = {};      // [B, T] i32, the same of the keys; both or neither
  ConstTensor query_blocks = {};  // [B, S] i32, image block of the token, -1 = none
  ConstTensor key_blocks = {};    // [B, T] i32; both or neither
  ConstTensor dense = {};         // [B, S, T] u8, 1 = visible: replaces everything above

  bool visible(int64_t b, int64_t s, int64_t t) const;
  // Every key that query s of row b sees lies in [first, last); the range may hold blind ones.
  struct Range {
    int64_t first, last;
  };
  Range key_range(int64_t b, int64_t s, int64_t keys) const;
  // True when every (query, key) pair with query in [s0, s1) and key in [t0, t1) is visible.
  bool all_visible(int64_t b, int64_t s0, int64_t s1, int64_t t0, int64_t t1) const;
};

// Throws Error unless shapes and dtypes fit B rows, S queries and T keys.
void check_mask(const MaskSpec& mask, int64_t rows, int64_t queries, int64_t keys);

}  // namespace lapidary::ops
