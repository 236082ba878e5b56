// The five likeliest next tokens of a prompt, from a Hugging Face directory.
//   example_forward DIRECTORY ID...
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

#include "lapidary/models/gemma4/conditional_generation.h"

namespace {

using lapidary::Dtype;
using lapidary::gemma4::Gemma4ForConditionalGeneration;

void print_top(const float* logits, int64_t vocabulary) {
  constexpr int64_t kTop = 5;
  std::vector<int64_t> order(static_cast<size_t>(vocabulary));
  std::iota(order.begin(), order.end(), 0);
  const int64_t count = std::min(kTop, vocabulary);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  double sum = 0.0;
  for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(logits[v] - logits[order[0]]);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = order[static_cast<size_t>(i)];
    std::printf("%d. token %6d  probability %.4f\n", static_cast<int>(i + 1), static_cast<int>(id),
                std::exp(logits[id] - logits[order[0]]) / sum);
  }
}

void run(const std::string& directory, const std::vector<int64_t>& ids) {
  auto model = Gemma4ForConditionalGeneration::from_pretrained(directory, {.dtype = Dtype::f32});
  const lapidary::gemma4::TextInputs inputs{
      .input_ids =
          lapidary::ConstTensor(ids.data(), Dtype::i64, {1, static_cast<int64_t>(ids.size())})};
  const lapidary::gemma4::ForwardOptions options{.logits_to_keep = 1};

  const lapidary::MemoryPlan plan = model.plan_forward(inputs, options);
  lapidary::Context ctx = lapidary::Context::make(model.backend(), plan);
  const lapidary::gemma4::ForwardOutput out = model.forward(ctx, inputs, options);
  print_top(out.logits->as<float>(), out.logits->dim(-1));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s DIRECTORY ID...\n", argv[0]);
    return 2;
  }
  try {
    std::vector<int64_t> ids;
    for (int i = 2; i < argc; ++i) ids.push_back(std::stoll(argv[i]));
    run(argv[1], ids);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
