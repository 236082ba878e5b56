#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

using ::testing::HasSubstr;

std::string file_of(const std::string& header, size_t payload, uint64_t claimed = 0) {
  const uint64_t length = claimed != 0 ? claimed : header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(payload, '\x01');
}

SafetensorsHeader parse(const std::string& bytes) {
  return parse_safetensors(reinterpret_cast<const std::byte*>(bytes.data()),
                           static_cast<int64_t>(bytes.size()), "x.safetensors");
}

std::string error_of(const std::string& bytes) {
  try {
    parse(bytes);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

TEST(SafetensorsHeader, AcceptsWhatTheFormatAllows) {
  const std::string bytes = file_of(
      "{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "BF16", "[2,3]", "[4,16]") + "," +
          entry("a", "F32", "[]", "[0,4]") + "," + entry("e", "I64", "[0,7]", "[16,16]") + "}   ",
      16);
  const SafetensorsHeader header = parse(bytes);
  ASSERT_EQ(header.entries.size(), 3U);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.entries[0].name, "b");
  EXPECT_EQ(header.entries[0].dtype, FileDtype::bf16);
  EXPECT_EQ(header.entries[0].shape, (Shape{2, 3}));
  EXPECT_EQ(header.entries[0].bytes, 12);
  EXPECT_EQ(header.entries[1].shape, Shape{1});
  EXPECT_TRUE(header.entries[1].scalar);
  EXPECT_FALSE(header.entries[0].scalar);
  EXPECT_EQ(header.entries[2].shape, (Shape{0, 7}));
  EXPECT_EQ(header.entries[0].data - header.entries[1].data, 4);
  EXPECT_TRUE(parse(file_of("{}", 0)).entries.empty());
}

TEST(SafetensorsHeader, RefusesBadLengths) {
  EXPECT_THAT(error_of(""), HasSubstr("too short"));
  EXPECT_THAT(error_of("1234567"), HasSubstr("too short"));
  EXPECT_THAT(error_of(file_of("{}", 0, 3)), HasSubstr("claims 3 bytes"));
  EXPECT_THAT(error_of(file_of("{}", 0, 10'000'000'000)), HasSubstr("the format allows 100000000"));
  EXPECT_THAT(error_of(file_of("{}", 0, ~uint64_t{0})), HasSubstr("the format allows"));
  EXPECT_THAT(error_of(std::string(8, '\0')), HasSubstr("not valid JSON"));
}

TEST(SafetensorsHeader, RefusesBadJson) {
  EXPECT_THAT(error_of(file_of("hello", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(file_of("{\"a\":", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(file_of("{} {}", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(file_of(std::string("{}\0x", 4), 0)), HasSubstr("zero byte"));
  EXPECT_THAT(error_of(file_of("{\"\xff\":{}}", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(file_of("[]", 0)), HasSubstr("an array"));
  EXPECT_THAT(error_of(file_of("3", 0)), HasSubstr("the number 3"));
  EXPECT_THAT(error_of(file_of("null", 0)), HasSubstr("null"));
  EXPECT_THAT(error_of(file_of(std::string(1'000'000, '['), 0)), HasSubstr("an array"));
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_THAT(error_of(file_of(deep, 0)), HasSubstr("unknown field \"a\""));
  EXPECT_THAT(error_of(file_of(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4)),
              HasSubstr("an array"));
}

TEST(SafetensorsHeader, RefusesBadEntries) {
  const auto one = [](const std::string& dtype, const std::string& shape,
                      const std::string& offsets, size_t payload) {
    return error_of(file_of(std::string("{") + entry("t", dtype, shape, offsets) + "}", payload));
  };
  EXPECT_THAT(one("F8_E4M3", "[4]", "[0,4]", 4), HasSubstr("\"F8_E4M3\", which is not supported"));
  EXPECT_THAT(one("F32", "[1,1,1,1,1,1]", "[0,4]", 4), HasSubstr("more than 5 dimensions"));
  EXPECT_THAT(one("F32", "[2]", "[0,4]", 4), HasSubstr("has 4 bytes, but F32 [2] needs 8"));
  EXPECT_THAT(one("F32", "[1]", "[0,8]", 4), HasSubstr("outside the file's 4 bytes"));
  EXPECT_THAT(one("F32", "[1]", "[4,0]", 4), HasSubstr("outside"));
  EXPECT_THAT(one("F32", "[1]", "[-4,0]", 4), HasSubstr("negative number -4"));
  EXPECT_THAT(one("F32", "[-1]", "[0,4]", 4), HasSubstr("negative number -1"));
  EXPECT_THAT(one("F32", "[1.5]", "[0,4]", 4), HasSubstr("the number \"1.5\""));
  EXPECT_THAT(one("F32", "[1]", "[0,4,8]", 4), HasSubstr("two data_offsets"));
  EXPECT_THAT(one("F32", "[1]", "[0]", 4), HasSubstr("two data_offsets"));
  EXPECT_THAT(one("F32", "[1]", "[0,18446744073709551612]", 4), HasSubstr("18446744073709551612"));
  EXPECT_THAT(one("F32", "[4611686018427387904,4]", "[0,0]", 0), HasSubstr("overflows"));
  EXPECT_THAT(one("F32", "[0,4611686018427387904,4]", "[0,0]", 0), HasSubstr("overflows"));
  EXPECT_THAT(error_of(file_of(R"({"t":{"dtype":"F32","shape":[0]}})", 0)), HasSubstr("lacks one"));
  EXPECT_THAT(error_of(file_of(
                  R"({"t":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}})", 0)),
              HasSubstr("twice"));
  EXPECT_THAT(error_of(file_of(R"({"__metadata__":{"a":1}})", 0)), HasSubstr("the number 1"));
  EXPECT_THAT(error_of(file_of(R"({"__metadata__":{"a":"1","a":"2"}})", 0)), HasSubstr("twice"));
}

TEST(SafetensorsHeader, RefusesBadLayouts) {
  const std::string a = entry("a", "F32", "[2]", "[0,8]");
  EXPECT_THAT(
      error_of(file_of(std::string("{") + a + "," + entry("b", "F32", "[2]", "[4,12]") + "}", 12)),
      HasSubstr("\"b\" overlaps"));
  EXPECT_THAT(
      error_of(file_of(std::string("{") + a + "," + entry("b", "F32", "[1]", "[12,16]") + "}", 16)),
      HasSubstr("bytes 8 to 12 before tensor \"b\" belong to no tensor"));
  EXPECT_THAT(error_of(file_of(std::string("{") + a + "}", 9)), HasSubstr("1 bytes at the end"));
  EXPECT_THAT(error_of(file_of(std::string("{") + a + "}", 7)),
              HasSubstr("outside the file's 7 bytes"));
  EXPECT_THAT(
      error_of(file_of(std::string("{") + a + "," + entry("a", "F32", "[1]", "[8,12]") + "}", 12)),
      HasSubstr("\"a\" occurs twice"));
}

TEST(SafetensorsHeader, MessagesStayShortAndPrintable) {
  const std::string message = error_of(file_of(
      std::string("{") + entry(std::string(100000, 'n') + "\\u001b", "Q4", "[1]", "[0,4]") + "}",
      4));
  EXPECT_LT(message.size(), 600U);
  const std::string control =
      error_of(file_of(std::string("{") + entry("\\u001b[2J", "Q4", "[1]", "[0,4]") + "}", 4));
  EXPECT_EQ(control.find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace lapidary
