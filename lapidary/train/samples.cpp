#include "lapidary/train/samples.h"

#include <algorithm>

#include "lapidary/models/gemma4/generation.h"

namespace lapidary {

std::vector<int64_t> stop_ids(const gemma4::Config& config, const Tokenizer* tokenizer) {
  std::vector<int64_t> ids = config.text.eos_token_id;
  if (tokenizer != nullptr) {
    for (const char* token : {"<turn|>", "<eos>"}) {
      if (const auto id = tokenizer->id_of(token)) ids.push_back(*id);
    }
  }
  return ids;
}

std::vector<std::string> sampled_answers(gemma4::Gemma4ForConditionalGeneration& model,
                                         const Tokenizer& tokenizer,
                                         const std::vector<Sample>& samples,
                                         const SamplesRecipe& options, uint64_t seed) {
  std::vector<std::string> out;
  for (const Sample& sample : samples) {
    if (static_cast<int64_t>(out.size()) == options.num_samples) break;
    const auto is_label = [](int64_t label) { return label != kIgnoreLabel; };
    const auto first = std::find_if(sample.labels.begin(), sample.labels.end(), is_label);
    const auto start = static_cast<size_t>(first - sample.labels.begin());
    if (start == 0 || first == sample.labels.end()) continue;
    const std::span<const int64_t> ids(sample.input_ids);
    const std::vector<int64_t> prompt(ids.begin(), ids.begin() + static_cast<int64_t>(start));
    gemma4::GenerationOptions generation{.max_new_tokens = options.max_new_tokens,
                                         .temperature = options.temperature,
                                         .seed = seed + out.size()};
    generation.stop_ids = stop_ids(model.config(), &tokenizer);
    const std::vector<int64_t> answer = gemma4::generate(model, prompt, generation);
    out.push_back("--- sample " + std::to_string(out.size() + 1) + "\n" +
                  tokenizer.decode(prompt, true) + "\n=> " + tokenizer.decode(answer, true) +
                  "\n(data set: " + tokenizer.decode(ids.subspan(start), true) + ")");
  }
  return out;
}

}  // namespace lapidary
