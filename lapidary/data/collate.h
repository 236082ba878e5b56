#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lapidary/data/sample.h"

namespace lapidary {

// Rows of equal length, row-major [rows, cols].
struct Batch {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<int64_t> input_ids;
  std::vector<int64_t> labels;  // aligned with input_ids; the model shifts
  std::vector<int64_t> position_ids;
  std::vector<int64_t> attention_mask;     // 1 = token, 0 = padding
  std::vector<int32_t> packed_seq_ids;     // empty unless a row is packed; 1, 2, ..., 0 = padding
  std::vector<int32_t> mm_token_type_ids;  // empty: text only
  int64_t num_label_tokens = 0;            // targets: labels [:, 1:] that are not kIgnoreLabel
  int64_t num_tokens = 0;                  // without padding
};

enum class PadSide { kRight, kLeft };

struct CollateOptions {
  int64_t pad_id = 0;
  PadSide side = PadSide::kRight;
  int64_t fixed_length = 0;  // columns of every batch; 0 = the longest sample's length ...
  int64_t multiple_of = 1;   // ... rounded up to a multiple of this
};

// Pads samples to one length: pad_id, labels kIgnoreLabel, position 0, mask 0, packed_seq_ids 0.
// The first label of a sample is set to kIgnoreLabel: no token comes before it, on whichever side
// the padding lies. When any sample is packed, the unpacked ones count as one document. Throws
// Error when there are no samples, one has lists of different length, or is longer than
// fixed_length.
Batch collate(std::span<const Sample* const> samples, const CollateOptions& options);

// The same batch as padding throughout, with no targets: it takes part in every collective step,
// teaches nothing, and counts nowhere.
Batch without_targets(Batch batch);

}  // namespace lapidary
