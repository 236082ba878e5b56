#pragma once

#include <functional>
#include <vector>

#include "lapidary/models/gemma4/conditional_generation.h"

namespace lapidary::gemma4 {

struct GenerationOptions {
  int64_t max_new_tokens = 128;
  double temperature = 0.0;  // 0: greedy, lowest id on ties
  int64_t top_k = 0;         // sample among the k likeliest; 0: all
  double top_p = 1.0;        // and among the fewest whose probabilities sum to p
  uint64_t seed = 42;
  std::vector<int64_t> stop_ids = {};  // generation ends after one of these, which is not reported
};

// Picks the next token from f32 logits [V].
int64_t sample(const float* logits, int64_t vocab_size, const GenerationOptions& options,
               uint64_t step);

// Continues one prompt; on_token (may be empty) sees each new id as it comes and returns false to
// stop. Returns the new ids. Errors: empty prompt, ids outside the vocabulary.
std::vector<int64_t> generate(Gemma4ForConditionalGeneration& model,
                              const std::vector<int64_t>& prompt, const GenerationOptions& options,
                              const std::function<bool(int64_t)>& on_token = {});

// Several prompts of different length, padded left; rows that have stopped hold their last id.
std::vector<std::vector<int64_t>> generate_batch(Gemma4ForConditionalGeneration& model,
                                                 const std::vector<std::vector<int64_t>>& prompts,
                                                 const GenerationOptions& options);

}  // namespace lapidary::gemma4
