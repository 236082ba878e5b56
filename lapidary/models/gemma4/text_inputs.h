#pragma once

#include <vector>

#include "lapidary/core/context.h"
#include "lapidary/models/gemma4/config.h"
#include "lapidary/ops/mask.h"

namespace lapidary::gemma4 {

// What a caller brings, under the names transformers uses. Integer tensors are i64, i32 or u8.
// B rows, S positions. Exactly one of input_ids and inputs_embeds.
struct TextInputs {
  ConstTensor input_ids = {};         // [B, S]
  ConstTensor inputs_embeds = {};     // [B, S, H], already scaled by sqrt(H)
  ConstTensor per_layer_inputs = {};  // [B, S, L P] table part, beside inputs_embeds only
  ConstTensor position_ids = {};      // [B, S] or [S]; undefined: 0, 1, ...
  // Non-zero = a real token: [S] or [B, S]. Or the whole mask, [B, 1, S, S] (u8: 1 = visible; f32:
  // 0 = visible, at most -1e4 = not): it replaces the masks of both layer types as it is.
  ConstTensor attention_mask = {};
  ConstTensor sliding_attention_mask = {};  // [B, 1, S, S], for sliding layers only
  ConstTensor packed_seq_ids = {};          // [B, S] 1-based document, 0 = padding
  ConstTensor mm_token_type_ids = {};       // [B, S] 0 text, 1 image, 2 video, 3 audio

  // Inputs without data that ask for the most memory a packed or padded batch can take: for plans.
  static TextInputs of_shape(int64_t rows, int64_t cols) {
    const ConstTensor ids(nullptr, Dtype::i64, {rows, cols});
    return {.input_ids = ids,
            .position_ids = ids,
            .attention_mask = ids,
            .packed_seq_ids = ids,
            .mm_token_type_ids = ids};
  }

  int64_t rows() const { return shape_source().dim(0); }
  int64_t cols() const { return shape_source().dim(1); }

 private:
  const ConstTensor& shape_source() const {
    return input_ids.defined() ? input_ids : inputs_embeds;
  }
};

// The same, checked and converted, where operations read them: in the activation arena. T = B S.
struct PreparedInputs {
  int64_t rows = 0, cols = 0;
  Tensor ids;          // [T] i64, placeholders replaced by the pad id; undefined with inputs_embeds
  Tensor grad_ids;     // [T] i64, -1 at placeholders and pad: rows that collect lookup gradients
  Tensor positions;    // [T] i64
  Tensor token_valid;  // [T] u8; undefined when all are valid
  Tensor key_valid;    // [B, S'] u8, S' = cached + S; undefined when all are valid
  Tensor docs;         // [B, S] i32, or undefined
  Tensor blocks;       // [B, S] i32 image blocks, or undefined
  Tensor dense_full, dense_sliding;  // [B, S, S] u8, or undefined
};

// offset: tokens already cached; then attention_mask covers cached and new tokens, [B, offset + S].
// Errors: shapes, ids outside the vocabulary (with row and column), missing or surplus inputs.
PreparedInputs prepare_inputs(Context& ctx, const Config& config, const TextInputs& inputs,
                              int64_t offset = 0);

// The mask of one layer type for queries [offset, offset + S) and keys [key_offset, offset + S).
ops::MaskSpec mask_of(const Config& config, const PreparedInputs& inputs, LayerType type,
                      ops::ImageRule rule, int64_t offset = 0, int64_t key_offset = 0);

// ---- for those who want dense masks ------------------------------------------------------------

// [B, S, S] u8, 1 = visible.
std::vector<uint8_t> dense_mask(const ops::MaskSpec& mask, int64_t rows, int64_t queries,
                                int64_t keys);
// [B, S, S] additive: 0 = visible, the lowest f32 = not.
std::vector<float> additive_mask(const ops::MaskSpec& mask, int64_t rows, int64_t queries,
                                 int64_t keys);
// 1 = padding, [B, S]: from [S] or [B, S] (mask == 0), or from the diagonal of a [B, 1, S, S] mask.
std::vector<uint8_t> derive_padding_mask(const ConstTensor& attention_mask, int64_t rows);
// Numbers the runs of image (1) and video (2) tokens of a row; -1 for others.
void image_blocks(const int64_t* mm_token_type_ids, int64_t count, int32_t* blocks);

}  // namespace lapidary::gemma4
