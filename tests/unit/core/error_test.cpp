#include "lapidary/core/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "lapidary/core/device.h"

namespace lapidary {
namespace {

std::string message_of(const Error& error) { return error.what(); }

TEST(Error, WhereWhatFix) {
  EXPECT_EQ(message_of(Error("recipes/x.yaml:14", "tp_size 3 does not divide 8 kv heads",
                             "use 1, 2, 4 or 8")),
            "recipes/x.yaml:14: tp_size 3 does not divide 8 kv heads; use 1, 2, 4 or 8");
  EXPECT_EQ(message_of(Error("here", "wrong")), "here: wrong");
  EXPECT_EQ(message_of(Error("", "wrong", "mend")), "wrong; mend");
}

TEST(Error, FailThrowsIt) {
  EXPECT_THAT([] { fail("op", "is wrong"); },
              testing::ThrowsMessage<Error>(testing::StrEq("op: is wrong")));
  EXPECT_THROW(fail("op", "is wrong"), std::runtime_error);
}

TEST(Problems, NoneIsSilent) {
  const Problems problems;
  EXPECT_TRUE(problems.empty());
  EXPECT_NO_THROW(problems.throw_if_any("recipe"));
}

TEST(Problems, OneIsThrownAsItIs) {
  Problems problems;
  problems.add("x.yaml:3", "unknown key", "did you mean lr?");
  EXPECT_FALSE(problems.empty());
  EXPECT_THAT([&] { problems.throw_if_any("recipe"); },
              testing::ThrowsMessage<Error>("x.yaml:3: unknown key; did you mean lr?"));
}

TEST(Problems, ManyAreListedInOrder) {
  Problems problems;
  problems.add("x.yaml:3", "first");
  problems.add("x.yaml:1", "second", "mend it");
  EXPECT_EQ(problems.messages().size(), 2U);
  EXPECT_THAT([&] { problems.throw_if_any("x.yaml"); },
              testing::ThrowsMessage<Error>(
                  "x.yaml: 2 mistakes:\n  x.yaml:3: first\n  x.yaml:1: second; mend it"));
}

TEST(Device, Names) {
  EXPECT_STREQ(name_of(Backend::cpu), "cpu");
  EXPECT_STREQ(name_of(Backend::ref), "ref");
  EXPECT_STREQ(name_of(Backend::cuda), "cuda");
  EXPECT_STREQ(name_of(Backend::meta), "meta");
  EXPECT_EQ(parse_backend("cpu"), Backend::cpu);
  EXPECT_THAT([] { parse_backend("gpu"); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("unknown device \"gpu\"")));
}

}  // namespace
}  // namespace lapidary
