#include "lapidary/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "lapidary/data/split.h"
#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using testing::fixture;
using ::testing::HasSubstr;

std::string file_of(const std::string& text) {
  return testing::write_text(testing::own_folder() + "dataset_test.jsonl", text);
}

Dataset load_text(const std::string& text, DatasetOptions options = {},
                  const Tokenizer* tokenizer = nullptr) {
  options.path = file_of(text);
  return load_dataset(options, tokenizer);
}

std::string error_in(const std::string& text, DatasetOptions options = {},
                     const Tokenizer* tokenizer = nullptr) {
  return error_of([&] { load_text(text, options, tokenizer); });
}

// `count` rows of one token each: 0, 1, 2, ...
std::string numbered_rows(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += "{\"input_ids\": [" + std::to_string(i) + "], \"labels\": [-100]}\n";
  }
  return text;
}

std::vector<int64_t> first_ids(const Dataset& dataset) {
  std::vector<int64_t> ids;
  for (const Sample& sample : dataset.samples) ids.push_back(sample.input_ids[0]);
  return ids;
}

TEST(DatasetTest, TokenRows) {
  const Dataset dataset = load_text(
      "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, 7]}\n"
      R"({"input_ids": [0, 5, 6, 0], "labels": [-100, 5, 6, -100], )"
      R"("attention_mask": [0, 1, 1, 0], "position_ids": [0, 3, 4, 0]})");
  ASSERT_EQ(dataset.samples.size(), 2U);
  EXPECT_THAT(dataset.samples[0].input_ids, ElementsAre(5, 6, 7));
  EXPECT_THAT(dataset.samples[0].labels, ElementsAre(-100, 6, 7));
  EXPECT_TRUE(dataset.samples[0].position_ids.empty());
  EXPECT_THAT(dataset.samples[1].input_ids, ElementsAre(5, 6));
  EXPECT_THAT(dataset.samples[1].labels, ElementsAre(5, 6));
  EXPECT_THAT(dataset.samples[1].position_ids, ElementsAre(3, 4));
  EXPECT_EQ(dataset.report.rows, 2);
  EXPECT_EQ(dataset.report.tokens, 5);
}

TEST(DatasetTest, TextRows) {
  const Tokenizer tokenizer = testing::tiny_tokenizer();
  DatasetOptions options;
  const std::string rows = "{\"text\": \"ab\"}\n{\"text\": \"\"}\n";
  Dataset dataset = load_text(rows, options, &tokenizer);
  EXPECT_THAT(dataset.samples[0].input_ids, ElementsAre(2, 265));
  EXPECT_EQ(dataset.samples[0].labels, dataset.samples[0].input_ids);
  EXPECT_THAT(dataset.samples[1].input_ids, ElementsAre(2));
  EXPECT_EQ(dataset.report.without_targets, 1);
  options.append_eos = true;
  dataset = load_text(rows, options, &tokenizer);
  EXPECT_THAT(dataset.samples[0].input_ids, ElementsAre(2, 265, 1));
}

TEST(DatasetTest, ChatRows) {
  const Tokenizer tokenizer = Tokenizer::load(fixture("small"));
  const Dataset dataset = load_text(
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": )"
      R"([{"type": "text", "text": "yo"}]}]})",
      {}, &tokenizer);
  const std::vector<ChatMessage> messages = {{"user", "hi"}, {"assistant", "yo"}};
  const ChatTokens want = gemma4_chat_format(tokenizer)(messages);
  EXPECT_EQ(dataset.samples[0].input_ids, want.input_ids);
  EXPECT_EQ(dataset.samples[0].labels, want.labels);
  EXPECT_GT(count_targets(dataset.samples[0]), 1);
}

TEST(DatasetTest, OwnChatFormat) {
  const Tokenizer tokenizer = testing::tiny_tokenizer();
  DatasetOptions options;
  options.path = file_of(R"({"messages": [{"role": "user", "content": "hi"}]})");
  const Dataset dataset =
      load_dataset(options, &tokenizer, [](std::span<const ChatMessage> messages) {
        return ChatTokens{{static_cast<int64_t>(messages.size()), 9}, {-100, 9}};
      });
  EXPECT_THAT(dataset.samples[0].input_ids, ElementsAre(1, 9));
}

TEST(DatasetTest, SplitsAndLimit) {
  DatasetOptions options;
  const std::string rows = numbered_rows(10);
  const auto ids = [&](const std::string& split, std::optional<int64_t> limit = std::nullopt) {
    options.split = split;
    options.limit_dataset_samples = limit;
    return first_ids(load_text(rows, options));
  };
  EXPECT_EQ(ids("train").size(), 10U);
  EXPECT_THAT(ids("train[:3]"), ElementsAre(0, 1, 2));
  EXPECT_THAT(ids("validation[7:]"), ElementsAre(7, 8, 9));
  EXPECT_THAT(ids("train[2:5]"), ElementsAre(2, 3, 4));
  EXPECT_THAT(ids("train[-2:]"), ElementsAre(8, 9));
  EXPECT_THAT(ids("train[:-8]"), ElementsAre(0, 1));
  EXPECT_THAT(ids("train[:20%]"), ElementsAre(0, 1));
  EXPECT_THAT(ids("train[90%:]"), ElementsAre(9));
  EXPECT_THAT(ids("train[8:100]"), ElementsAre(8, 9));
  EXPECT_THAT(ids("train", 2), ElementsAre(0, 1));
  EXPECT_THAT(ids("train[5:]", 2), ElementsAre(5, 6));
}

TEST(DatasetTest, BadSplits) {
  for (const char* text : {"", "[:3]", "train[3]", "train[:3", "train[a:b]", "train[1:2:3]",
                           "train[:200%]", "train[:1.5]", "train+test", "train[:99999999999999]"}) {
    EXPECT_THAT(error_of([&] { parse_split(text); }), HasSubstr("is not a split")) << text;
  }
}

TEST(DatasetTest, OverlongSamples) {
  const std::string rows = R"({"input_ids": [1, 2, 3], "labels": [1, 2, 3]})"
                           "\n"
                           R"({"input_ids": [4, 5], "labels": [4, 5]})";
  DatasetOptions options;
  options.max_length = 2;
  EXPECT_THAT(error_in(rows, options),
              HasSubstr("dataset_test.jsonl:1: 3 tokens, but max_length is 2"));
  options.overlong = Overlong::kTruncate;
  Dataset dataset = load_text(rows, options);
  EXPECT_THAT(dataset.samples[0].input_ids, ElementsAre(1, 2));
  EXPECT_THAT(dataset.samples[0].labels, ElementsAre(1, 2));
  EXPECT_EQ(dataset.report.truncated, 1);
  options.overlong = Overlong::kDrop;
  dataset = load_text(rows, options);
  EXPECT_THAT(first_ids(dataset), ElementsAre(4));
  EXPECT_EQ(dataset.report.dropped, 1);
  EXPECT_EQ(dataset.report.rows, 2);
  options.max_length = 1;
  EXPECT_THAT(error_in(rows, options), HasSubstr("all 2 samples are longer than max_length 1"));
}

TEST(DatasetTest, IdsOutsideTheVocabulary) {
  DatasetOptions options;
  options.vocab_size = 10;
  EXPECT_THAT(error_in(R"({"input_ids": [1, 10], "labels": [1, 2]})", options),
              HasSubstr("dataset_test.jsonl:1: input_ids[1] is 10, outside 0 to 9"));
  EXPECT_THAT(error_in(R"({"input_ids": [1, -1], "labels": [1, 2]})", options),
              HasSubstr("input_ids[1] is -1"));
  EXPECT_THAT(error_in(R"({"input_ids": [1, 2], "labels": [1, -99]})", options),
              HasSubstr("labels[1] is -99"));
  const Tokenizer tokenizer = testing::tiny_tokenizer();
  EXPECT_THAT(error_in(R"({"text": "ab"})", options, &tokenizer),
              HasSubstr("the token id 265 is outside the model's vocabulary of 10"));
  EXPECT_THAT(error_in(R"({"input_ids": [271], "labels": [1]})", {}, &tokenizer),
              HasSubstr("input_ids[0] is 271"));
}

TEST(DatasetTest, EmptyDatasets) {
  EXPECT_THAT(error_in(""), HasSubstr("dataset_test.jsonl: split train has no rows"));
  EXPECT_THAT(error_in("\n\n"), HasSubstr("has no rows"));
  DatasetOptions options;
  options.split = "train[5:]";
  EXPECT_THAT(error_in(numbered_rows(3), options), HasSubstr("split train[5:] has no rows"));
  options.split = "train";
  options.limit_dataset_samples = 0;
  EXPECT_THAT(error_in(numbered_rows(3), options), HasSubstr("limit_dataset_samples: 0"));
}

struct BadRow {
  const char* row;
  const char* message;
};

TEST(DatasetTest, BadRowsAreNamedByFileAndLine) {
  const Tokenizer tokenizer = Tokenizer::load(fixture("small"));
  const BadRow rows[] = {
      {"{", "not valid JSON: parse error at line 1, column 2"},
      {"[1]", "the row must be an object"},
      {"{\"text\": \"\xFF\"}", "not valid JSON"},
      {"{}", "the row has none of \"messages\", \"input_ids\", \"text\""},
      {R"({"text": 3})", "\"text\" must be a string"},
      {R"({"input_ids": [1]})", "\"labels\" is missing"},
      {R"({"input_ids": 1, "labels": []})", "\"input_ids\" must be a list"},
      {R"({"input_ids": [1.5], "labels": [1]})", "input_ids[0] is 1.5"},
      {R"({"input_ids": [18446744073709551615], "labels": [1]})", "input_ids[0] is 1844"},
      {R"({"input_ids": [[]], "labels": [1]})", "input_ids[0] is no number"},
      {R"({"input_ids": [1, 2], "labels": [1]})", "\"labels\" has 1 entries, \"input_ids\" 2"},
      {R"({"input_ids": [1], "labels": [1], "position_ids": [-1]})", "position_ids[0] is -1"},
      {R"({"input_ids": [1], "labels": [1], "attention_mask": [2]})", "attention_mask[0] is 2"},
      {R"({"input_ids": [1,1,1], "labels": [1,1,1], "attention_mask": [1,0,1]})",
       "attention_mask has a 0 between ones"},
      {R"({"input_ids": [1], "labels": [1], "attention_mask": [0]})", "the row has no tokens"},
      {R"({"input_ids": [], "labels": []})", "the row has no tokens"},
      {R"({"messages": []})", "\"messages\" must be a list that isn't empty"},
      {R"({"messages": ["hi"]})", "messages[0] must be an object with a role"},
      {R"({"messages": [{"role": "user"}]})", "messages[0].content is missing"},
      {R"({"messages": [{"role": "user", "content": 3}]})", "messages[0].content must be"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})",
       "messages[0].content[0] is not a text part"},
      {R"({"messages": [{"role": "user", "content": "", "tool_calls": []}]})",
       "messages[0].tool_calls is not supported"},
      {R"({"messages": [{"role": "pirate", "content": "arr"}]})", "chat: the role \"pirate\""},
  };
  for (const BadRow& bad : rows) {
    const std::string error =
        error_in(std::string("{\"text\": \"fine\"}\n\n") + bad.row + "\n", {}, &tokenizer);
    EXPECT_THAT(error, HasSubstr("dataset_test.jsonl:3: "));
    EXPECT_THAT(error, HasSubstr(bad.message));
  }
}

TEST(DatasetTest, WantedKindAndMissingTokenizer) {
  DatasetOptions options;
  options.kind = RowKind::kChat;
  EXPECT_THAT(error_in(R"({"text": "a"})", options), HasSubstr("\"messages\" is missing"));
  EXPECT_THAT(error_in(R"({"text": "a"})"), HasSubstr(":1: the row needs a tokenizer"));
}

}  // namespace
}  // namespace lapidary
