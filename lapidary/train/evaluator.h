#pragma once

#include <vector>

#include "lapidary/data/collate.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/parallel/data_parallel.h"

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
  // The batches are the same on any number of ranks: ranks of the data group take them in turn, all
  // equally many; those that would go empty get one of padding.
  Evaluator(const std::vector<Sample>& samples, int64_t batch_size, int64_t pad_id,
            const DataParallel& ranks);
  // Rows and columns of the largest batch of any rank.
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  const std::vector<Batch>& batches() const { return batches_; }  // of this rank
  // Over all ranks, all of which call it.
  Evaluation run(Context& ctx, gemma4::Gemma4ForConditionalGeneration& model) const;

 private:
  const DataParallel ranks_;
  std::vector<Batch> batches_;
  int64_t rows_ = 0, cols_ = 0;
};

}  // namespace lapidary
