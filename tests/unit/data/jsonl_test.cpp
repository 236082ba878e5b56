#include "lapidary/data/jsonl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/data/tokenizer_fixture.h"

namespace lapidary {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

std::string file_of(const std::string& text) {
  return testing::write_text(testing::own_folder() + "jsonl_test.jsonl", text);
}

using Lines = std::vector<std::pair<int64_t, std::string>>;

Lines read_all(const std::string& path, int64_t limit = JsonlReader::kDefaultMaxLineBytes) {
  JsonlReader reader(path, limit);
  Lines lines;
  while (reader.next()) lines.emplace_back(reader.line_number(), reader.line());
  return lines;
}

TEST(JsonlTest, LinesWithNumbers) {
  EXPECT_EQ(read_all(file_of("{}\n\n  \r\n[1]\r\nlast")),
            (Lines{{1, "{}"}, {4, "[1]"}, {5, "last"}}));
  EXPECT_EQ(read_all(file_of("")), Lines{});
  EXPECT_EQ(read_all(file_of("\n\n")), Lines{});
  EXPECT_EQ(read_all(file_of("\xEF\xBB\xBF{}\n")), (Lines{{1, "{}"}}));
}

TEST(JsonlTest, LinesLongerThanABlock) {
  Lines want;
  std::string text;
  for (int i = 1; i <= 5; ++i) {
    const std::string line(static_cast<size_t>(65536 * i / 2 + i), static_cast<char>('a' + i));
    want.emplace_back(i, line);
    text += line + "\n";
  }
  EXPECT_EQ(read_all(file_of(text)), want);
}

TEST(JsonlTest, LineLimit) {
  const std::string path = file_of("12345\n123456\n");
  EXPECT_THAT(error_of([&] { read_all(path, 5); }),
              HasSubstr("jsonl_test.jsonl:2: the line is longer than 5 bytes"));
  EXPECT_EQ(read_all(path, 6).size(), 2U);
  EXPECT_THAT(error_of([&] { read_all(file_of(std::string(1000000, 'x')), 1000); }),
              HasSubstr(":1: the line is longer"));
}

TEST(JsonlTest, MissingFileAndFolder) {
  EXPECT_THAT(error_of([] { read_all("/nowhere/x.jsonl"); }),
              HasSubstr("/nowhere/x.jsonl: can't be opened"));
  EXPECT_THAT(error_of([] { read_all(::testing::TempDir()); }), HasSubstr("is a folder"));
}

}  // namespace
}  // namespace lapidary
