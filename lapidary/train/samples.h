#pragma once

#include <string>
#include <vector>

#include "lapidary/data/sample.h"
#include "lapidary/data/tokenizer.h"
#include "lapidary/models/gemma4/conditional_generation.h"
#include "lapidary/train/recipe.h"

namespace lapidary {

// Lets the model answer the questions of the first samples: everything before the first label is
// the prompt. One text for each: question, answer, and what the data set says.
std::vector<std::string> sampled_answers(gemma4::Gemma4ForConditionalGeneration& model,
                                         const Tokenizer& tokenizer,
                                         const std::vector<Sample>& samples,
                                         const SamplesRecipe& options, uint64_t seed);

// Ids after which an answer is over: the configuration's eos ids and Gemma's end of turn.
std::vector<int64_t> stop_ids(const gemma4::Config& config, const Tokenizer* tokenizer);

}  // namespace lapidary
