#include "lapidary/data/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/data/sample.h"
#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using nlohmann::json;
using testing::error_of;
using testing::fixture;
using ::testing::HasSubstr;
using Messages = std::vector<ChatMessage>;

// The text of the labels, with | where they are interrupted.
std::string labelled(const Tokenizer& tokenizer, const ChatTokens& tokens) {
  std::string text;
  bool open = false;
  for (size_t i = 0; i < tokens.labels.size(); ++i) {
    const bool on = tokens.labels[i] != kIgnoreLabel;
    if (open && !on) text += "|";
    if (on) {
      EXPECT_EQ(tokens.labels[i], tokens.input_ids[i]);
      text += tokenizer.decode(std::vector<int64_t>{tokens.labels[i]}, false);
    }
    open = on;
  }
  return text;
}

class ChatFormatTest : public ::testing::Test {
 protected:
  Tokenizer tokenizer_ = Tokenizer::load(fixture("small"));
  ChatFormat format_ = gemma4_chat_format(tokenizer_);
};

TEST_F(ChatFormatTest, RendersAsTheModelsTemplate) {
  const json cases = json::parse(testing::read_text(fixture("chat_gemma4.json")));
  ASSERT_EQ(cases.size(), 12U);
  for (const json& item : cases) {
    Messages messages;
    for (const json& m : item["messages"]) messages.push_back({m["role"], m["content"]});
    const bool prompt = item["add_generation_prompt"];
    std::string text = render_gemma4_chat(messages, prompt).text;
    // For generation the template also opens and closes an empty thought.
    if (prompt) text += "<|channel>thought\n<channel|>";
    EXPECT_EQ(text, item["text"].get<std::string>());
    if (!prompt) {
      EXPECT_EQ(format_(messages).input_ids, tokenizer_.encode(item["text"].get<std::string>()));
    }
  }
}

TEST_F(ChatFormatTest, LabelsAreTheAnswersWithTheirEnd) {
  const Messages messages = {{"system", "Be brief."},
                             {"user", "2+2?"},
                             {"assistant", "4"},
                             {"user", "3+3?"},
                             {"assistant", " six "}};
  const ChatTokens tokens = format_(messages);
  EXPECT_EQ(labelled(tokenizer_, tokens), "4<turn|>|six<turn|>|");
  EXPECT_EQ(tokens.labels.size(), tokens.input_ids.size());
  EXPECT_EQ(tokens.labels[0], kIgnoreLabel);
}

TEST_F(ChatFormatTest, NoAnswerNoLabels) {
  EXPECT_EQ(labelled(tokenizer_, format_(Messages{{"user", "hello"}})), "");
}

TEST_F(ChatFormatTest, ContinuedAndEmptyAnswers) {
  const Messages messages = {{"user", "q"}, {"assistant", "a"}, {"model", "b"}, {"user", ""}};
  EXPECT_EQ(render_gemma4_chat(messages).text,
            "<bos><|turn>user\nq<turn|>\n<|turn>model\na<turn|>\nb<turn|>\n<|turn>user\n<turn|>\n");
  EXPECT_EQ(labelled(tokenizer_, format_(messages)), "a<turn|>|b<turn|>|");
  EXPECT_EQ(labelled(tokenizer_, format_(Messages{{"user", "q"}, {"assistant", ""}})), "<turn|>|");
}

TEST_F(ChatFormatTest, ThinkingIsTakenOutOfAnswers) {
  const Messages messages = {{"user", "q"},
                             {"assistant", "<|channel>thought\nx<channel|> yes <|channel>y"}};
  EXPECT_EQ(labelled(tokenizer_, format_(messages)), "yes<turn|>|");
}

// This tokenizer has a token "\nT": the one that holds the answer's first letter is a label.
TEST_F(ChatFormatTest, TokenAcrossTheStartOfAnAnswer) {
  const ChatTokens tokens = format_(Messages{{"user", "q"}, {"assistant", "Then"}});
  const std::string text = labelled(tokenizer_, tokens);
  EXPECT_TRUE(text == "\nThen<turn|>|" || text == "Then<turn|>|") << text;
}

TEST_F(ChatFormatTest, SpecialTokensInTextAreTokensButNoAnswer) {
  const ChatTokens tokens = format_(Messages{{"user", "<|turn>model\nfake<turn|>"}});
  EXPECT_EQ(labelled(tokenizer_, tokens), "");
  const int64_t turn = *tokenizer_.id_of("<|turn>");
  EXPECT_EQ(std::count(tokens.input_ids.begin(), tokens.input_ids.end(), turn), 2);
}

TEST_F(ChatFormatTest, Mistakes) {
  EXPECT_THAT(error_of([&] { format_(Messages{}); }), HasSubstr("there are no messages"));
  EXPECT_THAT(error_of([&] { format_(Messages{{"tool", "x"}}); }), HasSubstr("\"tool\""));
  const Tokenizer other = testing::tiny_tokenizer();
  EXPECT_THAT(error_of([&] { gemma4_chat_format(other); }), HasSubstr("no special token <|turn>"));
}

}  // namespace
}  // namespace lapidary
