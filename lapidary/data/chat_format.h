#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lapidary/data/tokenizer.h"

namespace lapidary {

struct ChatMessage {
  std::string role;  // system, developer, user, assistant (or model)
  std::string content;
};

// A conversation as text, with the byte ranges that are to be learned.
struct RenderedChat {
  std::string text;
  std::vector<TokenSpan> answers;  // ascending, disjoint
};

struct ChatTokens {
  std::vector<int64_t> input_ids;
  std::vector<int64_t> labels;  // aligned with input_ids; kIgnoreLabel outside the answers
};

// Messages -> tokens: the seam that chat formats plug into. Throws Error for messages that the
// format can't render.
using ChatFormat = std::function<ChatTokens(std::span<const ChatMessage>)>;

// Gemma 4 turns, text only, as the model's own chat template renders them:
//   <bos><|turn>user\n...<turn|>\n<|turn>model\n...<turn|>\n
// Contents lose white space at their ends, answers also their thinking (<|channel>...<channel|>);
// an assistant message after another one continues its turn. An answer reaches from behind
// "<|turn>model\n" up to and including its <turn|>. With add_generation_prompt the text ends in
// "<|turn>model\n".
RenderedChat render_gemma4_chat(std::span<const ChatMessage> messages,
                                bool add_generation_prompt = false);

// Tokenises the text as a whole; special tokens are recognised in it wherever they come from, as
// Hugging Face tokenizers do. A token is a label when it holds any byte of an answer.
ChatTokens tokenize_chat(const Tokenizer& tokenizer, const RenderedChat& chat);

// render_gemma4_chat, then tokenize_chat. `tokenizer` must outlive the result. Throws Error when
// the tokenizer lacks the tokens of the format.
ChatFormat gemma4_chat_format(const Tokenizer& tokenizer);

}  // namespace lapidary
