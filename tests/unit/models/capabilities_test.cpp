#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lapidary/core/error.h"
#include "lapidary/models/gemma4/conditional_generation.h"

namespace lapidary::gemma4 {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Model = Gemma4ForConditionalGeneration;

std::string refusal(const std::string& name, const ParallelSizes& sizes) {
  try {
    Model::check_parallel(named_config(name), sizes);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Capabilities, E2bHasOneKeyHead) {
  const Capabilities can = Model::get_capabilities(named_config("e2b"));
  EXPECT_FALSE(can.tp);
  EXPECT_EQ(can.max_tp, 1);
  EXPECT_THAT(can.why_no_tp, Not(IsEmpty()));
  EXPECT_TRUE(can.cp);
  EXPECT_FALSE(can.pp);
  EXPECT_FALSE(can.ep);
}

TEST(Capabilities, E4bHasTwoKeyHeads) {
  const Capabilities can = Model::get_capabilities(named_config("e4b"));
  EXPECT_TRUE(can.tp);
  EXPECT_EQ(can.max_tp, 2);
  EXPECT_TRUE(can.cp);
  EXPECT_FALSE(can.pp);  // layers share keys and values
  EXPECT_THAT(can.why_no_pp, Not(IsEmpty()));
  EXPECT_FALSE(can.ep);
}

// Sixteen key heads on sliding layers, but four on full ones.
TEST(Capabilities, FullLayersOf31bDecide) {
  const Capabilities can = Model::get_capabilities(named_config("31b"));
  EXPECT_TRUE(can.tp);
  EXPECT_EQ(can.max_tp, 4);
  EXPECT_TRUE(can.cp);
  EXPECT_TRUE(can.pp);
  EXPECT_FALSE(can.ep);
  EXPECT_THAT(can.why_no_ep, Not(IsEmpty()));
}

TEST(Capabilities, ExpertsTakeExpertParallelism) {
  const Capabilities can = Model::get_capabilities(named_config("26b-a4b"));
  EXPECT_FALSE(can.tp);
  EXPECT_EQ(can.max_tp, 1);
  EXPECT_FALSE(can.pp);
  EXPECT_TRUE(can.cp);
  EXPECT_TRUE(can.ep);
  EXPECT_THAT(can.why_no_tp, HasSubstr("ep"));
}

TEST(CheckParallel, OneRankIsAlwaysRight) {
  for (const std::string& name : named_configs()) EXPECT_EQ(refusal(name, {}), "") << name;
}

TEST(CheckParallel, TellsWhatTheModelCannotDo) {
  EXPECT_THAT(refusal("e2b", {.tp = 2}),
              AllOf(HasSubstr("distributed.tp_size"), HasSubstr("not supported by this model")));
  EXPECT_THAT(refusal("e4b", {.pp = 2}), HasSubstr("distributed.pp_size"));
  EXPECT_THAT(refusal("31b", {.ep = 4}), HasSubstr("no experts"));
  EXPECT_THAT(refusal("26b-a4b", {.tp = 2}), HasSubstr("use ep"));
  EXPECT_THAT(refusal("26b-a4b", {.pp = 2}), HasSubstr("distributed.pp_size"));
}

TEST(CheckParallel, TellsEveryMistakeAtOnce) {
  EXPECT_THAT(refusal("e2b", {.tp = 2, .pp = 2, .ep = 2}),
              AllOf(HasSubstr("tp_size"), HasSubstr("pp_size"), HasSubstr("ep_size")));
}

TEST(CheckParallel, WhatTheModelCouldDoStillNeedsRanks) {
  EXPECT_THAT(refusal("31b", {.tp = 4}), HasSubstr("several ranks"));
  EXPECT_THAT(refusal("31b", {.cp = 2}), HasSubstr("several ranks"));
  EXPECT_THAT(refusal("26b-a4b", {.ep = 8}), HasSubstr("several ranks"));
}

TEST(CheckParallel, SizesBelowOneAndAboveTheHeadsAreMistakesOfTheirOwn) {
  EXPECT_THAT(refusal("31b", {.tp = 8}), HasSubstr("4"));
  EXPECT_THAT(refusal("31b", {.tp = 3}), HasSubstr("4"));
  EXPECT_THAT(refusal("31b", {.cp = 0}), Not(IsEmpty()));
}

TEST(CheckParallel, HappensBeforeAnythingIsAllocated) {
  // 31 billion parameters: allocating them first would end the test.
  EXPECT_THROW(Model::from_config(named_config("31b"), {.parallel = {.tp = 2}}), Error);
}

TEST(Models, ReferenceTypesAndBackendsBelongTogether) {
  const Config config = named_config("e2b");
  EXPECT_THROW(Model::from_config(config, {.dtype = Dtype::f64, .backend = Backend::cpu}), Error);
  EXPECT_THROW(Model::from_config(config, {.dtype = Dtype::bf16, .backend = Backend::ref}), Error);
}

TEST(Models, MetaTakesNoMemory) {
  Model model =
      Model::from_config(named_config("31b"), {.dtype = Dtype::bf16, .backend = Backend::meta});
  EXPECT_EQ(model.parameter("model.language_model.norm.weight").value.data(), nullptr);
  EXPECT_THROW(model.parameter("nothing"), Error);
}

}  // namespace
}  // namespace lapidary::gemma4
