#include "lapidary/train/evaluator.h"

#include <algorithm>
#include <limits>

namespace lapidary {

gemma4::TextInputs text_inputs(const Batch& batch) {
  const Shape shape{batch.rows, batch.cols};
  gemma4::TextInputs in{.input_ids = ConstTensor(batch.input_ids.data(), Dtype::i64, shape),
                        .position_ids = ConstTensor(batch.position_ids.data(), Dtype::i64, shape)};
  if (!batch.packed_seq_ids.empty()) {
    in.packed_seq_ids = ConstTensor(batch.packed_seq_ids.data(), Dtype::i32, shape);
  } else if (std::find(batch.attention_mask.begin(), batch.attention_mask.end(), 0) !=
             batch.attention_mask.end()) {
    in.attention_mask = ConstTensor(batch.attention_mask.data(), Dtype::i64, shape);
  }
  if (!batch.mm_token_type_ids.empty()) {
    in.mm_token_type_ids = ConstTensor(batch.mm_token_type_ids.data(), Dtype::i32, shape);
  }
  return in;
}

ConstTensor label_tensor(const Batch& batch) {
  return {batch.labels.data(), Dtype::i64, {batch.rows, batch.cols}};
}

Evaluator::Evaluator(const std::vector<Sample>& samples, int64_t batch_size, int64_t pad_id,
                     const DataParallel& ranks)
    : ranks_(ranks) {
  // Samples of like length share a batch: less padding, and the result does not depend on it.
  std::vector<const Sample*> order;
  order.reserve(samples.size());
  for (const Sample& sample : samples) order.push_back(&sample);
  std::stable_sort(order.begin(), order.end(), [](const Sample* a, const Sample* b) {
    return a->input_ids.size() < b->input_ids.size();
  });
  rows_ = std::min<int64_t>(batch_size, static_cast<int64_t>(order.size()));
  if (!order.empty()) cols_ = static_cast<int64_t>(order.back()->input_ids.size());
  const auto step = static_cast<size_t>(batch_size);
  const size_t count = (order.size() + step - 1) / step;
  const auto size = static_cast<size_t>(ranks_.size());
  for (size_t turn = 0; turn < count; turn += size) {
    const size_t mine = turn + static_cast<size_t>(ranks_.rank());
    const size_t first = std::min(mine, count - 1) * step;
    Batch batch = collate(std::span(order).subspan(first, std::min(step, order.size() - first)),
                          {.pad_id = pad_id});
    batches_.push_back(mine < count ? std::move(batch) : without_targets(std::move(batch)));
  }
}

Evaluation Evaluator::run(Context& ctx, gemma4::Gemma4ForConditionalGeneration& model) const {
  Evaluation out;
  for (const Batch& batch : batches_) {
    out.loss += model.loss(ctx, text_inputs(batch), label_tensor(batch), {.backward = false});
    out.num_label_tokens += batch.num_label_tokens;
  }
  out.loss = ranks_.sum(out.loss);
  out.num_label_tokens = ranks_.sum(out.num_label_tokens);
  out.loss = out.num_label_tokens > 0 ? out.loss / static_cast<double>(out.num_label_tokens)
                                      : std::numeric_limits<double>::quiet_NaN();
  return out;
}

}  // namespace lapidary
