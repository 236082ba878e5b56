#include "lapidary/data/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using nlohmann::json;
using testing::error_of;
using ::testing::HasSubstr;

std::string load_error(const std::string& text) {
  return error_of([&] { Tokenizer::from_json(text, "tok.json"); });
}

struct Mistake {
  const char* name;
  std::function<void(json&)> make;
  const char* message;
};

class TokenizerMistakeTest : public ::testing::TestWithParam<Mistake> {};

TEST_P(TokenizerMistakeTest, OneErrorNamesTheField) {
  json j = testing::tiny_tokenizer_json();
  GetParam().make(j);
  const std::string error = load_error(j.dump());
  EXPECT_THAT(error, HasSubstr("tok.json: "));
  EXPECT_THAT(error, HasSubstr(GetParam().message));
}

const Mistake kMistakes[] = {
    {"NoModel", [](json& j) { j.erase("model"); }, "model is missing"},
    {"ModelIsAList", [](json& j) { j["model"] = json::array(); }, "model must be an object"},
    {"OtherModel", [](json& j) { j["model"]["type"] = "Unigram"; },
     "model.type \"Unigram\" is not supported"},
    {"Dropout", [](json& j) { j["model"]["dropout"] = 0.1; }, "model.dropout 0.1"},
    {"Prefix", [](json& j) { j["model"]["continuing_subword_prefix"] = "##"; },
     "model.continuing_subword_prefix"},
    {"IgnoreMerges", [](json& j) { j["model"]["ignore_merges"] = true; }, "model.ignore_merges"},
    {"FuseUnkIsText", [](json& j) { j["model"]["fuse_unk"] = "yes"; },
     "model.fuse_unk must be true or false"},
    {"UnkUnknown", [](json& j) { j["model"]["unk_token"] = "<what>"; },
     "model.unk_token is not in model.vocab"},
    {"NoVocab", [](json& j) { j["model"].erase("vocab"); }, "model.vocab is missing"},
    {"EmptyVocab", [](json& j) { j["model"]["vocab"] = json::object(); },
     "model.vocab is missing or empty"},
    {"VocabIsAList", [](json& j) { j["model"]["vocab"] = json::array(); },
     "model.vocab must be an object"},
    {"IdIsText", [](json& j) { j["model"]["vocab"]["q"] = "7"; },
     "model.vocab: the id of \"q\" must be a whole number"},
    {"IdIsNegative", [](json& j) { j["model"]["vocab"]["q"] = -7; }, "the id of \"q\""},
    {"IdIsAnObject", [](json& j) { j["model"]["vocab"]["q"] = json::object(); }, "the id of \"q\""},
    {"IdTwice", [](json& j) { j["model"]["vocab"]["q"] = 261; }, "id 261 belongs to \"a\""},
    {"IdHuge", [](json& j) { j["model"]["vocab"]["q"] = 4'000'000'000'000; },
     "id 4000000000000 of \"q\" is too large"},
    {"NoMerges", [](json& j) { j["model"].erase("merges"); }, "model.merges is missing"},
    {"MergesIsAnObject", [](json& j) { j["model"]["merges"] = json::object(); },
     "model.merges must be a list"},
    {"MergeUnknownLeft",
     [](json& j) {
       j["model"]["merges"][1] = {"q", "a"};
     },
     "model.merges[1]: the left part \"q\" is not in model.vocab"},
    {"MergeUnknownRight",
     [](json& j) {
       j["model"]["merges"][2] = {"a", "q"};
     },
     "model.merges[2]: the right part \"q\""},
    {"MergeUnknownResult",
     [](json& j) {
       j["model"]["merges"][0] = {"b", "a"};
     },
     "model.merges[0]: the result \"ba\""},
    {"MergeOnePart", [](json& j) { j["model"]["merges"][3] = json::array({"a"}); },
     "model.merges[3] must have two parts"},
    {"MergeThreeParts",
     [](json& j) {
       j["model"]["merges"][3] = {"a", "b", "c"};
     },
     "must have two parts"},
    {"MergeEmptyPart",
     [](json& j) {
       j["model"]["merges"][0] = {"", "a"};
     },
     "model.merges[0] has an empty part"},
    {"MergeLineNoSpace", [](json& j) { j["model"]["merges"][0] = "ab"; },
     "model.merges[0] must be two tokens with one space"},
    {"MergeLineTwoSpaces", [](json& j) { j["model"]["merges"][0] = "a b c"; }, "one space"},
    {"MergeIsANumber", [](json& j) { j["model"]["merges"][0] = 3; }, "model.merges[0] must be"},
    {"MergeNested",
     [](json& j) {
       j["model"]["merges"][0] = {json::array(), "a"};
     },
     "model.merges[0] must be"},
    {"Normalizer",
     [](json& j) {
       j["normalizer"] = {{"type", "NFC"}};
     },
     "normalizer.type \"NFC\" is not supported"},
    {"NormalizerRegex",
     [](json& j) {
       j["normalizer"]["pattern"] = {{"Regex", " +"}};
     },
     "normalizer.pattern must be a String"},
    {"NormalizerEmpty",
     [](json& j) {
       j["normalizer"]["pattern"] = {{"String", ""}};
     },
     "normalizer.pattern is empty"},
    {"PreTokenizer",
     [](json& j) {
       j["pre_tokenizer"] = {{"type", "ByteLevel"}};
     },
     "pre_tokenizer.type \"ByteLevel\""},
    {"SplitMatches", [](json& j) { j["normalizer"] = nullptr; }, "pre_tokenizer.pattern splits"},
    {"NoDecoder", [](json& j) { j.erase("decoder"); }, "decoder is missing"},
    {"Decoder",
     [](json& j) {
       j["decoder"]["decoders"][1] = {{"type", "WordPiece"}};
     },
     "decoder.decoders[1].type \"WordPiece\""},
    {"DecoderOrder",
     [](json& j) { std::swap(j["decoder"]["decoders"][0], j["decoder"]["decoders"][1]); },
     "decoder.decoders[1].type \"Replace\""},
    {"PostProcessor", [](json& j) { j["post_processor"]["type"] = "BertProcessing"; },
     "post_processor.type \"BertProcessing\""},
    {"TemplateToken", [](json& j) { j["post_processor"]["special_tokens"] = json::object(); },
     "post_processor.special_tokens lacks \"<bos>\""},
    {"TemplateId", [](json& j) { j["post_processor"]["special_tokens"]["<bos>"]["ids"] = {9999}; },
     "ids must be ids of the vocabulary"},
    {"TemplateWithoutText", [](json& j) { j["post_processor"]["single"].erase(1); },
     "post_processor.single has no Sequence"},
    {"AddedIsAnObject", [](json& j) { j["added_tokens"] = json::object(); },
     "added_tokens must be a list"},
    {"AddedStrip", [](json& j) { j["added_tokens"][2]["lstrip"] = true; },
     "added_tokens[2].lstrip true is not supported"},
    {"AddedSingleWord", [](json& j) { j["added_tokens"][0]["single_word"] = true; },
     "added_tokens[0].single_word"},
    {"AddedEmpty", [](json& j) { j["added_tokens"][1]["content"] = ""; },
     "added_tokens[1].content is empty"},
    {"AddedOtherId", [](json& j) { j["added_tokens"][1]["id"] = 77; },
     "added_tokens[1].id is 77, but \"<eos>\" already has id 1"},
    {"AddedIdTaken", [](json& j) { j["added_tokens"][1]["content"] = "<new>"; },
     "added_tokens[1].id 1 of \"<new>\" already belongs to \"<eos>\""},
    {"AddedTwice", [](json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); },
     "added_tokens[4].content or id appears twice"},
    {"AddedIdMissing", [](json& j) { j["added_tokens"][0].erase("id"); },
     "added_tokens[0].id must be a whole number"},
};

INSTANTIATE_TEST_SUITE_P(All, TokenizerMistakeTest, ::testing::ValuesIn(kMistakes),
                         [](const auto& mistake) { return mistake.param.name; });

TEST(TokenizerJsonTest, EveryTruncationIsAnError) {
  const std::string text = testing::tiny_tokenizer_json().dump();
  for (size_t size = 0; size < text.size(); size += 7) {
    EXPECT_THAT(load_error(text.substr(0, size)), HasSubstr("tok.json: ")) << size;
  }
}

TEST(TokenizerJsonTest, RepeatedKeysAreErrors) {
  EXPECT_THAT(load_error(R"({"model": {"vocab": {"a": 1, "a": 2}}})"),
              HasSubstr("token \"a\" appears twice"));
  EXPECT_THAT(load_error(R"({"model": {"vocab": {"a": 1}, "vocab": {}}})"),
              HasSubstr("model.vocab appears twice"));
  EXPECT_THAT(load_error(R"({"model": {"merges": [], "merges": []}})"),
              HasSubstr("model.merges appears twice"));
  EXPECT_THAT(load_error(R"({"model": {"type": "BPE", "type": "BPE"}})"),
              HasSubstr("model.type appears twice"));
}

TEST(TokenizerJsonTest, DeepNestingAndOtherRootsAreErrors) {
  EXPECT_THAT(load_error(std::string(100000, '[')), HasSubstr("nested deeper"));
  EXPECT_THAT(load_error("[]"), HasSubstr("must be an object"));
  EXPECT_THAT(load_error("3"), HasSubstr("must be an object"));
  EXPECT_THAT(load_error(""), HasSubstr("not valid JSON"));
}

TEST(TokenizerJsonTest, MergesMayComeBeforeTheVocabulary) {
  json j = testing::tiny_tokenizer_json();
  const std::string merges = j["model"]["merges"].dump();
  j["model"].erase("merges");
  std::string text = j.dump();
  const size_t at = text.find("\"model\":{") + 9;
  text.insert(at, "\"merges\":" + merges + ",");
  EXPECT_EQ(Tokenizer::from_json(text, "t").encode("ab"), std::vector<int64_t>{265});
}

TEST(TokenizerJsonTest, MissingFile) {
  EXPECT_THAT(error_of([] { Tokenizer::load("/nowhere/tokenizer.json"); }),
              HasSubstr("/nowhere/tokenizer.json: can't be read"));
  EXPECT_THAT(error_of([] { Tokenizer::load(::testing::TempDir()); }),
              HasSubstr("tokenizer.json: can't be read"));
}

}  // namespace
}  // namespace lapidary
