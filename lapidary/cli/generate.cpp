#include "lapidary/models/gemma4/generation.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "lapidary/cli/commands.h"
#include "lapidary/core/error.h"
#include "lapidary/data/chat_format.h"
#include "lapidary/data/tokenizer.h"
#include "lapidary/train/samples.h"

namespace lapidary::cli {
namespace {

struct Options {
  std::string model, prompt, input_ids, dtype = "", device = "cpu";
  bool print_ids = false, ignore_eos = false, raw = false;
  gemma4::GenerationOptions generation;
};

std::vector<int64_t> parse_ids(const std::string& text) {
  std::vector<int64_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    int64_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || (next < end && *next != ',')) {
      fail("--input-ids", "\"" + text + "\" is not a list of numbers", "write 2,5,7");
    }
    ids.push_back(id);
    at = next + 1;
  }
  return ids;
}

std::optional<Tokenizer> tokenizer_of(const std::string& model) {
  if (!std::filesystem::exists(std::filesystem::path(model) / "tokenizer.json")) {
    return std::nullopt;
  }
  return Tokenizer::load(model);
}

std::vector<int64_t> prompt_ids(const Options& options, const Tokenizer* tokenizer) {
  if (!options.input_ids.empty()) return parse_ids(options.input_ids);
  if (tokenizer == nullptr) {
    fail(options.model, "has no tokenizer.json, so --prompt cannot be read", "use --input-ids");
  }
  if (options.raw) return tokenizer->encode(options.prompt, true);
  const ChatMessage message{.role = "user", .content = options.prompt};
  return tokenize_chat(*tokenizer, render_gemma4_chat(std::span(&message, 1), true)).input_ids;
}

Dtype dtype_of_model(const Options& options) {
  if (!options.dtype.empty()) return parse_dtype(options.dtype);
  const gemma4::Config config = gemma4::load_config(options.model);
  return config.torch_dtype == "bfloat16" ? Dtype::bf16 : Dtype::f32;
}

void run(Options options) {
  const std::optional<Tokenizer> tokenizer = tokenizer_of(options.model);
  const Tokenizer* words = tokenizer ? &*tokenizer : nullptr;
  const std::vector<int64_t> prompt = prompt_ids(options, words);
  auto model = gemma4::Gemma4ForConditionalGeneration::from_pretrained(
      options.model, {.dtype = dtype_of_model(options), .backend = parse_backend(options.device)});
  if (!options.ignore_eos) options.generation.stop_ids = stop_ids(model.config(), words);

  if (options.print_ids || words == nullptr) {
    const std::vector<int64_t> ids = gemma4::generate(model, prompt, options.generation);
    fmt::print("{}\n", fmt::join(ids, ","));
    return;
  }
  StreamDecoder decoder(*words, true);
  const auto show = [](const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  gemma4::generate(model, prompt, options.generation, [&](int64_t id) {
    show(decoder.push(id));
    return true;
  });
  show(decoder.finish() + "\n");
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Let a model continue a prompt");
  const auto o = std::make_shared<Options>();
  command->add_option("model", o->model, "Hugging Face model directory")->required();
  CLI::Option* prompt =
      command->add_option("--prompt", o->prompt, "what the user says, in a chat turn");
  CLI::Option* ids = command->add_option("--input-ids", o->input_ids, "token ids, as 2,5,7");
  prompt->excludes(ids);
  command->add_flag("--raw", o->raw, "take the prompt as plain text, not as a chat turn");
  command->add_option("--max-new-tokens", o->generation.max_new_tokens, "at most so many tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--temperature", o->generation.temperature, "0: greedy")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-k", o->generation.top_k, "sample among the k likeliest; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-p", o->generation.top_p, "sample among the likeliest of mass p")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", o->generation.seed, "of the sampling")->capture_default_str();
  command->add_flag("--print-ids", o->print_ids, "print the new ids, comma-separated");
  command->add_flag("--ignore-eos", o->ignore_eos, "don't stop at the end of a turn");
  command->add_option("--dtype", o->dtype, "fp32 or bf16; default: as the checkpoint has it")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  command->add_option("--device", o->device, "cpu or cuda")->capture_default_str();
  command->callback([=] {
    if (o->prompt.empty() && o->input_ids.empty()) {
      throw CLI::RequiredError("--prompt or --input-ids");
    }
    run(*o);
  });
}

}  // namespace lapidary::cli
