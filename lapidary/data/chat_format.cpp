#include "lapidary/data/chat_format.h"

#include <fmt/format.h>

#include <array>
#include <string_view>

#include "lapidary/core/error.h"
#include "lapidary/data/sample.h"
#include "lapidary/data/utf8.h"

namespace lapidary {
namespace {

constexpr std::string_view kBos = "<bos>";
constexpr std::string_view kTurnStart = "<|turn>";
constexpr std::string_view kTurnEnd = "<turn|>";
constexpr std::string_view kThinkStart = "<|channel>";
constexpr std::string_view kThinkEnd = "<channel|>";

// Per part between ends of thinking: what stands before a start of thinking.
std::string without_thinking(std::string_view text) {
  std::string out;
  while (true) {
    const size_t end = text.find(kThinkEnd);
    const std::string_view part = text.substr(0, end);
    out += part.substr(0, part.find(kThinkStart));
    if (end == text.npos) return out;
    text.remove_prefix(end + kThinkEnd.size());
  }
}

bool is_answer(const ChatMessage& message) {
  return message.role == "assistant" || message.role == "model";
}

std::string_view turn_role(const ChatMessage& message, bool first) {
  if (is_answer(message)) return "model";
  if (message.role == "user" || message.role == "system") return message.role;
  if (message.role == "developer" && first) return "system";
  fail("chat", fmt::format("the role \"{}\" can't be rendered here", message.role),
       "use system or developer first, then user and assistant");
}

}  // namespace

RenderedChat render_gemma4_chat(std::span<const ChatMessage> messages, bool add_generation_prompt) {
  if (messages.empty()) fail("chat", "there are no messages");
  RenderedChat chat;
  chat.text = kBos;
  const auto open = [&](std::string_view role) {
    chat.text.append(kTurnStart).append(role) += '\n';
  };
  const auto end = [&] { return static_cast<int64_t>(chat.text.size()); };
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool answer = is_answer(message);
    const bool continues = answer && i > 0 && is_answer(messages[i - 1]);
    if (!continues) open(turn_role(message, i == 0));
    const int64_t begin = end();
    chat.text += trim(answer ? without_thinking(message.content) : message.content);
    chat.text += kTurnEnd;
    if (answer) chat.answers.push_back({begin, end()});
    chat.text += '\n';
  }
  if (add_generation_prompt) open("model");
  return chat;
}

ChatTokens tokenize_chat(const Tokenizer& tokenizer, const RenderedChat& chat) {
  Encoding encoding = tokenizer.encode_with_spans(chat.text);
  ChatTokens tokens;
  tokens.labels.assign(encoding.ids.size(), kIgnoreLabel);
  size_t token = 0;
  for (const TokenSpan& answer : chat.answers) {
    while (token < encoding.spans.size() && encoding.spans[token].end <= answer.begin) ++token;
    for (; token < encoding.spans.size() && encoding.spans[token].begin < answer.end; ++token) {
      tokens.labels[token] = encoding.ids[token];
    }
  }
  tokens.input_ids = std::move(encoding.ids);
  return tokens;
}

ChatFormat gemma4_chat_format(const Tokenizer& tokenizer) {
  for (const std::string_view token : {kBos, kTurnStart, kTurnEnd}) {
    const std::optional<int64_t> id = tokenizer.id_of(token);
    if (!id || tokenizer.encode(token) != std::vector<int64_t>{*id}) {
      fail("chat", fmt::format("the tokenizer has no special token {}", token),
           "take the tokenizer.json of a Gemma 4 model");
    }
  }
  return [&tokenizer](std::span<const ChatMessage> messages) {
    return tokenize_chat(tokenizer, render_gemma4_chat(messages));
  };
}

}  // namespace lapidary
