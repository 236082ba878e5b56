#pragma once

#include <vector>

#include "lapidary/data/collate.h"
#include "lapidary/models/gemma4/conditional_generation.h"

namespace lapidary {

// The batch as the model takes it; the batch must outlive the result.
gemma4::TextInputs text_inputs(const Batch& batch);
ConstTensor label_tensor(const Batch& batch);

struct Evaluation {
  double loss = 0.0;  // mean over label tokens, NaN when there are none
  int64_t num_label_tokens = 0;
};

// The token-weighted mean loss over fixed batches.
class Evaluator {
 public:
  Evaluator(const std::vector<Sample>& samples, int64_t batch_size, int64_t pad_id);
  // Rows and columns of the largest batch.
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  Evaluation run(Context& ctx, gemma4::Gemma4ForConditionalGeneration& model) const;

 private:
  std::vector<Batch> batches_;
  int64_t rows_ = 0, cols_ = 0;
};

}  // namespace lapidary
