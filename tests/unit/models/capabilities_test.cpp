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

std::string refusal(const std::string& name, const MeshOptions& sizes) {
  std::string out;
  for (const MeshProblem& found : Model::check_parallel(named_config(name), sizes)) {
    out += found.axis + " " + found.what + "; " + found.fix + "\n";
  }
  return out;
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
  EXPECT_THAT(refusal("e2b", {.tp_size = 2}),
              AllOf(HasSubstr("tp_size"), HasSubstr("not supported by this model")));
  EXPECT_THAT(refusal("e4b", {.pp_size = 2}), HasSubstr("pp_size"));
  EXPECT_THAT(refusal("31b", {.ep_size = 4}), HasSubstr("no experts"));
  EXPECT_THAT(refusal("26b-a4b", {.tp_size = 2}), HasSubstr("use ep"));
  EXPECT_THAT(refusal("26b-a4b", {.pp_size = 2}), HasSubstr("pp_size"));
}

TEST(CheckParallel, TellsEveryMistakeAtOnce) {
  EXPECT_THAT(refusal("e2b", {.tp_size = 2, .pp_size = 2, .ep_size = 2}),
              AllOf(HasSubstr("tp_size"), HasSubstr("pp_size"), HasSubstr("ep_size")));
}

TEST(CheckParallel, AxesThatAreNotBuiltAreRefused) {
  EXPECT_THAT(refusal("31b", {.tp_size = 4}), HasSubstr("not in this version"));
  EXPECT_THAT(refusal("31b", {.cp_size = 2}), HasSubstr("not in this version"));
}

TEST(CheckParallel, TheFewestKeyHeadsOfAnyLayerBoundTensorParallelism) {
  EXPECT_THAT(refusal("31b", {.tp_size = 8}), HasSubstr("use a divisor of 4"));
  EXPECT_THAT(refusal("31b", {.tp_size = 3}), HasSubstr("use a divisor of 4"));
}

TEST(CheckParallel, AnyNumberOfRanksUpToThatOfTheExpertsMayShareThem) {
  EXPECT_EQ(refusal("26b-a4b", {.ep_size = 8}), "");
  EXPECT_EQ(refusal("26b-a4b", {.ep_size = 7}), "");
  EXPECT_EQ(refusal("26b-a4b", {.ep_size = 128}), "");
  EXPECT_THAT(refusal("26b-a4b", {.ep_size = 129}), HasSubstr("use at most 128"));
}

TEST(CheckParallel, HappensBeforeAnythingIsAllocated) {
  const MeshGroups groups(
      Mesh({.world_size = 2, .tp_size = 2}), 0,
      [](int64_t, const std::string&) { return std::make_unique<SelfGroup>(); });
  // 31 billion parameters: allocating them first would end the test.
  EXPECT_THROW(Model::from_config(named_config("31b"), {.groups = &groups}), Error);
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
