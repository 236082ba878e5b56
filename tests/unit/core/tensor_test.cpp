#include "lapidary/core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <type_traits>
#include <vector>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

static_assert(std::is_trivially_copyable_v<Tensor> && std::is_trivially_copyable_v<ConstTensor>);

// [2, 3, 4, 5] with elements 0, 1, 2, ...
class TensorTest : public testing::Test {
 protected:
  TensorTest() { std::iota(data_.begin(), data_.end(), 0.0F); }
  std::vector<float> data_ = std::vector<float>(120);
  Tensor t_{data_.data(), Dtype::f32, {2, 3, 4, 5}};
};

TEST(Shape, Basics) {
  const Shape shape{2, 24, 40};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape.numel(), 1920);
  EXPECT_EQ(shape.str(), "[2, 24, 40]");
  EXPECT_EQ(Shape().str(), "[]");
  EXPECT_EQ(Shape().numel(), 1);
  EXPECT_EQ((Shape{3, 0, 2}).numel(), 0);
  EXPECT_TRUE((Shape{2, 3} == Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3} == Shape{2, 3, 1}));
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1}), Error);
  EXPECT_THROW((Shape{1, -1}), Error);
}

TEST_F(TensorTest, ContiguousStrides) {
  EXPECT_TRUE(t_.defined());
  EXPECT_TRUE(t_.contiguous());
  EXPECT_EQ(t_.numel(), 120);
  EXPECT_EQ(t_.bytes(), 480);
  EXPECT_EQ(t_.stride(0), 60);
  EXPECT_EQ(t_.stride(-2), 5);
  EXPECT_EQ(t_.dim(-1), 5);
  EXPECT_EQ(t_.stride(-1), 1);
}

TEST(Tensor, Undefined) {
  const Tensor none;
  EXPECT_FALSE(none.defined());
  EXPECT_EQ(none.numel(), 0);
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_THROW(none.rows(), Error);
}

TEST_F(TensorTest, TypedAccessIsChecked) {
  EXPECT_EQ(t_.as<float>(), data_.data());
  EXPECT_THROW(t_.as<double>(), Error);
  EXPECT_THROW(static_cast<const ConstTensor&>(t_).as<bf16>(), Error);
}

TEST_F(TensorTest, Slice) {
  const Tensor s = t_.slice(1, 1, 2).slice(-1, 2, 3);
  EXPECT_TRUE(s.shape() == (Shape{2, 2, 4, 3}));
  EXPECT_FALSE(s.contiguous());
  EXPECT_EQ(*s.as<float>(), 22.0F);
  EXPECT_EQ(s.as<float>()[s.stride(0) + s.stride(1) + 3 * s.stride(2) + 2], 60 + 40 + 15 + 4);
  EXPECT_EQ(t_.slice(0, 2, 0).numel(), 0);
  EXPECT_THROW(t_.slice(1, 2, 2), Error);
  EXPECT_THROW(t_.slice(1, -1, 1), Error);
  EXPECT_THROW(t_.slice(1, 0, -1), Error);
}

TEST_F(TensorTest, View) {
  const Tensor v = t_.view({6, 20});
  EXPECT_EQ(v.data(), t_.data());
  EXPECT_EQ(v.stride(0), 20);
  EXPECT_THROW(t_.view({6, 21}), Error);
  EXPECT_THROW(t_.slice(3, 0, 4).view({2, 3, 16}), Error);
  EXPECT_NO_THROW(t_.slice(0, 1, 1).view({60}));
}

TEST_F(TensorTest, Rows) {
  const Tensor all = t_.rows();
  EXPECT_TRUE(all.shape() == (Shape{24, 5}));
  EXPECT_EQ(all.stride(0), 5);
  const Tensor narrow = t_.slice(3, 1, 2).rows();  // spaced by the full width
  EXPECT_TRUE(narrow.shape() == (Shape{24, 2}));
  EXPECT_EQ(narrow.as<float>()[23 * narrow.stride(0)], 116.0F);
  const Tensor vector = Tensor(data_.data(), Dtype::f32, {7}).rows();
  EXPECT_TRUE(vector.shape() == (Shape{1, 7}));
  EXPECT_THROW(t_.slice(2, 0, 3).rows(), Error);
  EXPECT_THROW(t_.slice(1, 0, 2).rows(), Error);
}

// Dimensions of size 1 neither hide uneven rows nor forbid even ones.
TEST_F(TensorTest, RowsAroundUnitDimensions) {
  const Tensor wide(data_.data(), Dtype::f32, {4, 1, 6, 5});
  EXPECT_THROW(wide.slice(2, 0, 3).rows(), Error);
  const Tensor column = Tensor(data_.data(), Dtype::f32, {8, 3, 5}).slice(1, 2, 1).rows();
  EXPECT_TRUE(column.shape() == (Shape{8, 5}));
  EXPECT_EQ(column.as<float>()[3 * column.stride(0)], 3 * 15 + 10.0F);
  const Tensor one = t_.slice(0, 1, 1).slice(1, 1, 1).slice(2, 2, 1).rows();
  EXPECT_TRUE(one.shape() == (Shape{1, 5}));
  EXPECT_EQ(*one.as<float>(), 60 + 20 + 10.0F);
  const Tensor outer = t_.slice(0, 1, 1).slice(1, 0, 2).rows();
  EXPECT_TRUE(outer.shape() == (Shape{8, 5}));
  EXPECT_EQ(outer.as<float>()[7 * outer.stride(0)], 60 + 35.0F);
  EXPECT_TRUE(t_.slice(2, 0, 0).rows().shape() == (Shape{0, 5}));
}

// On the meta backend shapes travel without memory.
TEST(Tensor, WithoutMemory) {
  const Tensor meta(nullptr, Dtype::bf16, {4, 6});
  EXPECT_TRUE(meta.defined());
  EXPECT_EQ(meta.slice(0, 2, 2).data(), nullptr);
  EXPECT_EQ(meta.rows().view({24}).data(), nullptr);
}

TEST_F(TensorTest, ErrorsNameTheShape) {
  EXPECT_THAT([&] { t_.slice(1, 2, 2); },
              testing::ThrowsMessage<Error>(testing::AllOf(testing::HasSubstr("[2, 3, 4, 5]"),
                                                           testing::HasSubstr("2 .. 4"))));
  EXPECT_THAT([&] { t_.as<double>(); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("is f32, not f64")));
}

}  // namespace
}  // namespace lapidary
