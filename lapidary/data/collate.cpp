#include "lapidary/data/collate.h"

#include <fmt/format.h>

#include <algorithm>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

void check_sample(const Sample& sample, size_t index) {
  const size_t size = sample.input_ids.size();
  const bool positions_fit = sample.position_ids.empty() || sample.position_ids.size() == size;
  const bool packed_fits = sample.packed_seq_ids.empty() || sample.packed_seq_ids.size() == size;
  if (size == 0 || sample.labels.size() != size || !positions_fit || !packed_fits) {
    fail(fmt::format("sample {} of a batch", index), "its lists are empty or differ in length");
  }
}

int64_t columns(std::span<const Sample* const> samples, const CollateOptions& options) {
  size_t longest = 0;
  for (const Sample* sample : samples) longest = std::max(longest, sample->input_ids.size());
  const auto length = static_cast<int64_t>(longest);
  if (options.fixed_length > 0) {
    if (length > options.fixed_length) {
      fail("batch",
           fmt::format("a sample of {} tokens is longer than the fixed length {}", length,
                       options.fixed_length),
           "raise the length, or let long samples be truncated or dropped");
    }
    return options.fixed_length;
  }
  const int64_t multiple = std::max<int64_t>(1, options.multiple_of);
  return (length + multiple - 1) / multiple * multiple;
}

void put_sample(const Sample& sample, size_t at, bool packed, Batch& batch) {
  for (size_t i = 0; i < sample.input_ids.size(); ++i) {
    const int32_t document = sample.packed_seq_ids.empty() ? 1 : sample.packed_seq_ids[i];
    batch.input_ids[at + i] = sample.input_ids[i];
    if (i > 0) batch.labels[at + i] = sample.labels[i];
    batch.position_ids[at + i] =
        sample.position_ids.empty() ? static_cast<int64_t>(i) : sample.position_ids[i];
    batch.attention_mask[at + i] = document > 0 ? 1 : 0;
    if (packed) batch.packed_seq_ids[at + i] = document;
    if (document > 0) ++batch.num_tokens;
  }
  batch.num_label_tokens += count_targets(sample);
}

}  // namespace

Batch collate(std::span<const Sample* const> samples, const CollateOptions& options) {
  if (samples.empty()) fail("batch", "there are no samples");
  for (size_t i = 0; i < samples.size(); ++i) check_sample(*samples[i], i);
  const bool packed = std::any_of(samples.begin(), samples.end(), [](const Sample* sample) {
    return !sample->packed_seq_ids.empty();
  });
  Batch batch;
  batch.rows = static_cast<int64_t>(samples.size());
  batch.cols = columns(samples, options);
  const auto size = static_cast<size_t>(batch.rows * batch.cols);
  batch.input_ids.assign(size, options.pad_id);
  batch.labels.assign(size, kIgnoreLabel);
  batch.position_ids.assign(size, 0);
  batch.attention_mask.assign(size, 0);
  if (packed) batch.packed_seq_ids.assign(size, 0);
  for (size_t row = 0; row < samples.size(); ++row) {
    const auto cols = static_cast<size_t>(batch.cols);
    const size_t pad = cols - samples[row]->input_ids.size();
    const size_t start = row * cols + (options.side == PadSide::kLeft ? pad : 0);
    put_sample(*samples[row], start, packed, batch);
  }
  return batch;
}

Batch without_targets(Batch batch) {
  std::fill(batch.labels.begin(), batch.labels.end(), kIgnoreLabel);
  std::fill(batch.attention_mask.begin(), batch.attention_mask.end(), 0);
  std::fill(batch.packed_seq_ids.begin(), batch.packed_seq_ids.end(), 0);
  batch.num_label_tokens = 0;
  batch.num_tokens = 0;
  return batch;
}

}  // namespace lapidary
