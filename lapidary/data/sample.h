#pragma once

#include <cstdint>
#include <vector>

namespace lapidary {

// A label that is no target.
inline constexpr int64_t kIgnoreLabel = -100;

// One document, or one packed row of several. Labels are aligned with input_ids: the model predicts
// labels[i + 1] at position i, so labels[0] is never a target.
struct Sample {
  std::vector<int64_t> input_ids;
  std::vector<int64_t> labels;        // as many; a vocabulary id or kIgnoreLabel
  std::vector<int64_t> position_ids;  // as many, or empty: 0, 1, 2, ...
  std::vector<int32_t>
      packed_seq_ids;  // as many, or empty: one document; 1, 2, ... and 0 = padding
};

// How many labels are targets.
int64_t count_targets(const Sample& sample);

// What happens to a document that is longer than allowed.
enum class Overlong { kError, kTruncate, kDrop };

}  // namespace lapidary
