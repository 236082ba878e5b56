#include "lapidary/data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "lapidary/core/rng.h"
#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::fixture;
using testing::tiny_tokenizer;
using Ids = std::vector<int64_t>;

std::string unpack(const std::string& path) {
  FILE* pipe = popen(("xz -dc '" + path + "'").c_str(), "r");
  if (pipe == nullptr) fail(path, "can't be unpacked");
  std::string text;
  char block[65536];
  for (size_t n = 0; (n = fread(block, 1, sizeof block, pipe)) > 0;) text.append(block, n);
  if (pclose(pipe) != 0) fail(path, "can't be unpacked", "install xz-utils");
  return text;
}

std::string stream(const Tokenizer& tokenizer, const Ids& ids, bool skip) {
  StreamDecoder decoder(tokenizer, skip);
  std::string text;
  for (const int64_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

void check_cases(const Tokenizer& tokenizer, const std::string& file) {
  const json cases = json::parse(testing::read_text(fixture(file)))["cases"];
  ASSERT_EQ(cases.size(), 39U);
  for (const json& item : cases) {
    const auto text = item["text"].get<std::string>();
    SCOPED_TRACE(text);
    const auto ids = item["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids);
    EXPECT_EQ(tokenizer.encode(text), ids);  // now from the cache of chunks
    const Encoding encoding = tokenizer.encode_with_spans(text);
    EXPECT_EQ(encoding.ids, ids);
    int64_t end = 0;
    for (const TokenSpan& span : encoding.spans) {
      EXPECT_EQ(span.begin, end);
      end = span.end;
    }
    EXPECT_EQ(end, static_cast<int64_t>(text.size()));
    EXPECT_EQ(tokenizer.decode(ids, false), item["decoded"].get<std::string>());
    EXPECT_EQ(stream(tokenizer, ids, false), item["decoded"].get<std::string>());
  }
}

TEST(TokenizerTest, SmallReferenceCases) {
  const Tokenizer tokenizer = Tokenizer::load(fixture("small"));
  EXPECT_EQ(tokenizer.vocab_size(), 4096);
  check_cases(tokenizer, "tokenize_small.json");
}

TEST(TokenizerTest, GemmaReferenceCases) {
  const std::string text = unpack(fixture("gemma_tokenizer.json.xz"));
  const Tokenizer tokenizer = Tokenizer::from_json(text, "gemma");
  EXPECT_EQ(tokenizer.vocab_size(), 262145);  // one added token lies behind the model's own
  EXPECT_EQ(tokenizer.id_of("<image_soft_token>"), 262144);
  check_cases(tokenizer, "tokenize_gemma.json");
}

TEST(TokenizerTest, AddsBosOnRequest) {
  const Tokenizer tokenizer = tiny_tokenizer();
  EXPECT_THAT(tokenizer.encode("ab", true), ElementsAre(2, 265));
  EXPECT_THAT(tokenizer.encode("ab"), ElementsAre(265));
  EXPECT_THAT(tokenizer.encode("", true), ElementsAre(2));
  const Encoding encoding = tokenizer.encode_with_spans("ab", true);
  EXPECT_EQ(encoding.spans[0].end, 0);
  EXPECT_EQ(encoding.spans[1].end, 2);
}

TEST(TokenizerTest, LowestRankFirstThenLeftmost) {
  const Tokenizer tokenizer = tiny_tokenizer();
  // "▁ab": a+b has rank 0, so ▁+a never gets its turn.
  EXPECT_THAT(tokenizer.encode(" ab"), ElementsAre(267));
  EXPECT_THAT(tokenizer.encode(" abc"), ElementsAre(267, 263));
  EXPECT_THAT(tokenizer.encode("abc"), ElementsAre(268));
  EXPECT_THAT(tokenizer.encode("   "), ElementsAre(269, 260));
  // The merge "> ▁" crosses the start of a word: ▁+ab (rank 2) comes before it (rank 5).
  EXPECT_THAT(tokenizer.encode("> ab"), ElementsAre(264, 267));
  EXPECT_THAT(tokenizer.encode("> b"), ElementsAre(270, 262));
}

TEST(TokenizerTest, SpansCountBytesOfTheOriginalText) {
  const Encoding encoding = tiny_tokenizer().encode_with_spans("a ab<eos>é");
  EXPECT_EQ(encoding.ids, (Ids{261, 267, 1, 4 + 0xC3, 4 + 0xA9}));
  const std::vector<std::pair<int64_t, int64_t>> want = {{0, 1}, {1, 4}, {4, 9}, {9, 10}, {10, 11}};
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(encoding.spans[i].begin, want[i].first);
    EXPECT_EQ(encoding.spans[i].end, want[i].second);
  }
}

TEST(TokenizerTest, UnkIsFusedWithoutByteFallback) {
  json j = testing::tiny_tokenizer_json();
  j["model"]["byte_fallback"] = false;
  EXPECT_THAT(Tokenizer::from_json(j.dump(), "t").encode("aéüb"), ElementsAre(261, 3, 262));
  j["model"]["fuse_unk"] = false;
  EXPECT_THAT(Tokenizer::from_json(j.dump(), "t").encode("aéüb"), ElementsAre(261, 3, 3, 262));
  j["model"]["unk_token"] = nullptr;
  EXPECT_THAT(Tokenizer::from_json(j.dump(), "t").encode("aéüb"),
              ElementsAre(265));  // dropped: a, b meet
}

TEST(TokenizerTest, MergesAsStrings) {
  json j = testing::tiny_tokenizer_json();
  json lines = json::array();
  for (const json& pair : j["model"]["merges"]) {
    lines.push_back(pair[0].get<std::string>() + " " + pair[1].get<std::string>());
  }
  j["model"]["merges"] = lines;
  EXPECT_THAT(Tokenizer::from_json(j.dump(), "t").encode("> ab abc"),
              ElementsAre(264, 267, 267, 263));
}

TEST(TokenizerTest, AddedTokensLongestFirstAndBeforeNormalisation) {
  json j = testing::tiny_tokenizer_json();
  json token = j["added_tokens"][0];
  token["special"] = false;
  const auto add = [&](const std::string& content, int64_t id, bool normalized) {
    token["content"] = content;
    token["id"] = id;
    token["normalized"] = normalized;
    j["added_tokens"].push_back(token);
  };
  add("x", 271, false);
  add("xyz", 272, false);
  add("b c", 273, true);   // matched as "b▁c", after normalisation
  add("c  ", 274, false);  // two raw spaces
  const Tokenizer tokenizer = Tokenizer::from_json(j.dump(), "t");
  EXPECT_THAT(tokenizer.encode("xyzxy"), ElementsAre(272, 271, 4 + 'y'));
  EXPECT_THAT(tokenizer.encode("ab ca"), ElementsAre(261, 273, 261));
  EXPECT_THAT(tokenizer.encode("c  a"), ElementsAre(274, 261));
  const Encoding encoding = tokenizer.encode_with_spans("ab ca");
  EXPECT_EQ(encoding.spans[1].begin, 1);
  EXPECT_EQ(encoding.spans[1].end, 4);
  EXPECT_EQ(tokenizer.decode(Ids{271, 2, 273}, true), "xb c");  // not special: stays
  EXPECT_FALSE(tokenizer.is_special(271));
  EXPECT_TRUE(tokenizer.is_special(2));
}

TEST(TokenizerTest, DecodeOfBrokenBytes) {
  const Tokenizer tokenizer = tiny_tokenizer();
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(tokenizer.decode(Ids{4 + 0xC3, 4 + 0xA9}, false), "é");
  EXPECT_EQ(tokenizer.decode(Ids{4 + 0xC3}, false), bad);
  // A run is judged as a whole: one stray byte spoils its neighbours.
  EXPECT_EQ(tokenizer.decode(Ids{4 + 0xC3, 4 + 0xA9, 4 + 0xFF}, false), bad + bad + bad);
  EXPECT_EQ(tokenizer.decode(Ids{4 + 0xC3, 261, 4 + 0xA9}, false), bad + "a" + bad);
  EXPECT_EQ(tokenizer.decode(Ids{4 + 0xC3, 2, 4 + 0xA9}, true), "é");
  EXPECT_EQ(tokenizer.decode(Ids{4 + 0xC3, 2, 4 + 0xA9}, false), bad + "<bos>" + bad);
  EXPECT_EQ(tokenizer.decode(Ids{-1, 261, 99999999}, false), "a");
}

TEST(TokenizerTest, StreamHoldsBackUnfinishedBytes) {
  const Tokenizer tokenizer = tiny_tokenizer();
  StreamDecoder decoder(tokenizer, true);
  EXPECT_EQ(decoder.push(267), " ab");
  EXPECT_EQ(decoder.push(4 + 0xC3), "");
  EXPECT_EQ(decoder.push(4 + 0xA9), "");
  EXPECT_EQ(decoder.push(261), "éa");
  EXPECT_EQ(decoder.push(4 + 0xC3), "");
  EXPECT_EQ(decoder.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  const Tokenizer tokenizer = tiny_tokenizer();
  EXPECT_THAT(testing::error_of([&] { tokenizer.encode("ab\xFFzz"); }),
              ::testing::HasSubstr("not UTF-8 at byte 2"));
  for (const char* text : {"\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x96", "\x80"}) {
    EXPECT_THROW(tokenizer.encode(text), Error);
  }
}

// Byte-pair encoding by its definition: look at all neighbours, merge the best, start again.
Ids encode_by_definition(const json& model, const std::string& normalized) {
  std::vector<std::string> parts;
  for (const char c : normalized) {
    if ((static_cast<unsigned char>(c) & 0xC0U) == 0x80U) {
      parts.back() += c;
    } else {
      parts.emplace_back(1, c);
    }
  }
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t i = 0; i < model["merges"].size(); ++i) {
    ranks[{model["merges"][i][0], model["merges"][i][1]}] = i;
  }
  while (true) {
    size_t best = SIZE_MAX;
    size_t where = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = ranks.find({parts[i], parts[i + 1]});
      if (it != ranks.end() && it->second < best) {
        best = it->second;
        where = i;
      }
    }
    if (best == SIZE_MAX) break;
    parts[where] += parts[where + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
  Ids ids;
  for (const std::string& part : parts) ids.push_back(model["vocab"][part]);
  return ids;
}

// Random vocabularies in which merges cross word boundaries freely: cutting and caching must not
// show.
TEST(TokenizerTest, RandomMergesAgreeWithTheDefinition) {
  Rng rng(7);
  const std::vector<std::string> letters = {"a", "b", "▁", ">", "é", "\n"};
  for (int trial = 0; trial < 30; ++trial) {
    json j = testing::tiny_tokenizer_json();
    json& model = j["model"];
    std::vector<std::string> pool = letters;
    for (const std::string& letter : letters) {
      if (!model["vocab"].contains(letter)) model["vocab"][letter] = model["vocab"].size();
    }
    model["merges"] = json::array();
    const int64_t count = 1 + rng.below(25);
    for (int64_t i = 0; i < count; ++i) {
      const std::string left = pool[static_cast<size_t>(rng.below(std::ssize(pool)))];
      const std::string right = pool[static_cast<size_t>(rng.below(std::ssize(pool)))];
      if (!model["vocab"].contains(left + right)) {
        model["vocab"][left + right] = model["vocab"].size();
        pool.push_back(left + right);
      }
      model["merges"].push_back({left, right});
    }
    const Tokenizer tokenizer = Tokenizer::from_json(j.dump(), "random");
    for (int sample = 0; sample < 40; ++sample) {
      std::string text;
      const int64_t length = rng.below(40);
      for (int64_t i = 0; i < length; ++i) {
        text += letters[static_cast<size_t>(rng.below(std::ssize(letters)))];
      }
      ASSERT_EQ(tokenizer.encode(text), encode_by_definition(model, text))
          << text << "\n"
          << model["merges"].dump();
    }
  }
}

TEST(TokenizerTest, ManyThreadsAtOnce) {
  const Tokenizer tokenizer = tiny_tokenizer();
  const std::string text = "ab abc  a> b é> ab";
  const Ids want = tokenizer.encode(text);
  std::vector<int> wrong(4, 0);
  {
    std::vector<std::jthread> threads;
    for (size_t t = 0; t < wrong.size(); ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 500; ++i) wrong[t] += tokenizer.encode(text) == want ? 0 : 1;
      });
    }
  }
  EXPECT_THAT(wrong, ::testing::Each(0));
}

TEST(TokenizerTest, LongTextsWithoutAnyBoundaryStayFast) {
  const Tokenizer tokenizer = tiny_tokenizer();
  std::string text;
  for (int i = 0; i < 200000; ++i) text += "ab";
  EXPECT_EQ(tokenizer.encode(text).size(), 200000U);
  EXPECT_EQ(tokenizer.encode(std::string(400001, ' ')).size(), 200001U);
}

}  // namespace
}  // namespace lapidary
