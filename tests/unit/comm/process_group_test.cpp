#include "lapidary/comm/process_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

using ::testing::ElementsAre;

template <class T>
Tensor tensor(std::vector<T>& values, const Shape& shape) {
  return {values.data(), dtype_of<T>(), shape};
}

TEST(SelfGroup, IsAGroupOfOne) {
  SelfGroup group;
  EXPECT_EQ(group.rank(), 0);
  EXPECT_EQ(group.size(), 1);
  group.barrier();
}

TEST(SelfGroup, ReductionsLeaveTheValues) {
  SelfGroup group;
  std::vector<float> x = {1.0F, -2.0F};
  group.all_reduce(tensor(x, {2}));
  group.broadcast(tensor(x, {2}), 0);
  EXPECT_THAT(x, ElementsAre(1.0F, -2.0F));
  std::array<double, 2> sums = {3.0, 4.0};
  group.all_reduce(sums);
  EXPECT_THAT(sums, ElementsAre(3.0, 4.0));
  std::array<int64_t, 1> count = {7};
  group.all_reduce(count);
  EXPECT_THAT(count, ElementsAre(7));
}

TEST(SelfGroup, GatherAndScatterCopy) {
  SelfGroup group;
  std::vector<double> in = {1, 2, 3, 4};
  std::vector<double> gathered(4);
  std::vector<double> scattered(4);
  group.all_gather(tensor(in, {2, 2}), tensor(gathered, {2, 2}));
  group.reduce_scatter(tensor(in, {2, 2}), tensor(scattered, {2, 2}));
  EXPECT_EQ(gathered, in);
  EXPECT_EQ(scattered, in);
  group.all_gather(tensor(in, {2, 2}), tensor(in, {2, 2}));
  EXPECT_THAT(in, ElementsAre(1, 2, 3, 4));
}

TEST(SelfGroup, AllToAllCopiesRows) {
  SelfGroup group;
  std::vector<bf16> in = {bf16(1.0F), bf16(2.0F), bf16(3.0F), bf16(4.0F)};
  std::vector<bf16> out(4);
  const std::array<int64_t, 1> rows = {2};
  group.all_to_all_v(tensor(in, {2, 2}), rows, tensor(out, {2, 2}), rows);
  for (size_t i = 0; i < in.size(); ++i) EXPECT_EQ(out[i].bits, in[i].bits);
  const std::array<int64_t, 1> none = {0};
  group.all_to_all_v(tensor(in, {0, 2}), none, tensor(out, {0, 2}), none);
}

TEST(SelfGroup, RefusesWhatDoesNotFit) {
  SelfGroup group;
  std::vector<float> a(4);
  std::vector<double> b(4);
  std::vector<bf16> half(4);
  const std::array<int64_t, 1> one = {1};
  const std::array<int64_t, 1> two = {2};
  const std::array<int64_t, 2> pair = {1, 1};
  EXPECT_THROW(group.all_reduce(tensor(half, {4})), Error);
  EXPECT_THROW(group.all_reduce(Tensor()), Error);
  EXPECT_THROW(group.all_reduce(tensor(a, {2, 2}).slice(1, 0, 1)), Error);
  EXPECT_THROW(group.all_gather(tensor(a, {4}), tensor(b, {4})), Error);
  EXPECT_THROW(group.all_gather(tensor(a, {2}), tensor(a, {4})), Error);
  EXPECT_THROW(group.reduce_scatter(tensor(half, {4}), tensor(half, {4})), Error);
  EXPECT_THROW(group.all_to_all_v(tensor(a, {2, 2}), one, tensor(a, {2, 2}), two), Error);
  EXPECT_THROW(group.all_to_all_v(tensor(a, {2, 2}), pair, tensor(a, {2, 2}), two), Error);
  EXPECT_THROW(group.all_to_all_v(tensor(a, {1, 2}), one, tensor(a, {2, 2}), two), Error);
  EXPECT_THROW(group.all_to_all_v(tensor(a, {2, 2}), two, tensor(a, {2, 1}), two), Error);
  EXPECT_THROW(group.broadcast(tensor(a, {4}), 1), Error);
  EXPECT_THROW(group.send(tensor(a, {4}), 0), Error);
  EXPECT_THROW(group.recv(tensor(a, {4}), 1), Error);
}

}  // namespace
}  // namespace lapidary
