#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/golden/names.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// Properties that hold exactly in real arithmetic, whatever the reference says: what a token may
// not see does not matter, and neither does the way in which tokens are laid out in rows.
namespace lapidary::test {
namespace {

constexpr double kExact = 1e-12;  // f64 sums in another order

// Largest absolute difference of the logits of columns [first, last) of a row, over the largest
// logit of `a`.
double difference(const ConstTensor& a, const ConstTensor& b, int64_t row, int64_t first,
                  int64_t last) {
  double peak = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) peak = std::max(peak, std::abs(at(a, i)));
  const auto part = [&](const ConstTensor& t) {
    return t.slice(0, row, 1).slice(1, first, last - first);
  };
  return max_error(part(a), part(b)) / peak;
}

// ---- accumulation ------------------------------------------------------------------------------

class Accumulation : public ::testing::TestWithParam<const char*> {};

TEST_P(Accumulation, MicroBatchesSumToTheLargeBatch) {
  const GoldenCase golden(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
  const LossAndGradients whole = run_gradients(model, golden.inputs);
  const auto count = static_cast<double>(golden.inputs.targets());
  model.zero_gradients();
  double sum = 0.0;
  for (int64_t b = 0; b < golden.inputs.input_ids->dim(0); ++b) {
    sum += run_loss(model, golden.inputs.rows(b, 1), {.grad_scale = 1.0 / count});
  }
  EXPECT_NEAR(sum / count / whole.loss, 1.0, kExact);
  EXPECT_LT(worst_difference(copy_gradients(model), whole.gradients), kExact);
}

INSTANTIATE_TEST_SUITE_P(Golden, Accumulation,
                         ::testing::Values("moe_text", "dense_text", "e_text"), case_name);

// ---- causality ---------------------------------------------------------------------------------

class Causality : public ::testing::TestWithParam<CaseAndDtype> {};

// Other tokens change the sizes of matrix products of experts, and with them their rounding.
double tolerance(Dtype dtype) { return dtype == Dtype::f64 ? 0.0 : 1e-5; }

TEST_P(Causality, AChangedTokenActsOnItselfAndLaterTokensOnly) {
  const GoldenCase golden(std::get<0>(GetParam()));
  const Dtype dtype = std::get<1>(GetParam());
  Gemma4ForConditionalGeneration model = golden.model(dtype);
  const gemma4::ForwardOutput before = run_forward(model, golden.inputs.text());
  const int64_t cols = golden.inputs.input_ids->dim(1);
  const std::vector<uint8_t> real = golden.inputs.real();
  const Tensor& docs = golden.inputs.packed_seq_ids.get();
  for (const int64_t t : {int64_t{1}, int64_t{7}, int64_t{13}, cols / 2 + 2}) {
    ASSERT_EQ(real[static_cast<size_t>(t)], 1) << t;
    auto& id = golden.inputs.input_ids->as<int64_t>()[t];
    const int64_t old = id;
    id = old == 5 ? 6 : 5;
    const gemma4::ForwardOutput after = run_forward(model, golden.inputs.text());
    id = old;
    const Tensor &a = before.logits.get(), &b = after.logits.get();
    EXPECT_LE(difference(a, b, 0, 0, t), tolerance(dtype)) << "before token " << t;
    EXPECT_GT(difference(a, b, 0, t, t + 1), 1e-2) << "token " << t;
    if (a.dim(0) > 1) {
      EXPECT_LE(difference(a, b, 1, 0, cols), tolerance(dtype)) << "row 1";
    }
    if (!docs.defined()) continue;
    for (int64_t s = t + 1; s < cols; ++s) {
      if (docs.as<int64_t>()[s] == 0 || docs.as<int64_t>()[s] == docs.as<int64_t>()[t]) continue;
      EXPECT_LE(difference(a, b, 0, s, s + 1), tolerance(dtype)) << "document of token " << s;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Causality,
                         ::testing::Combine(::testing::Values("moe_text", "moe_packed",
                                                              "dense_text", "e_text"),
                                            ::testing::Values(Dtype::f64, Dtype::f32)),
                         case_and_dtype);

// ---- packing -----------------------------------------------------------------------------------

TEST(Packing, EqualsSeparateDocuments) {
  const GoldenCase golden("moe_packed");
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
  const gemma4::ForwardOutput packed = run_forward(model, golden.inputs.text());
  const LossAndGradients whole = run_gradients(model, golden.inputs);
  const auto count = static_cast<double>(golden.inputs.targets());

  const std::vector<int64_t> docs = integers(golden.inputs.packed_seq_ids.get());
  model.zero_gradients();
  double sum = 0.0;
  int documents = 0;
  for (size_t first = 0; first < docs.size();) {
    size_t last = first;
    while (last < docs.size() && docs[last] == docs[first]) ++last;
    const auto start = static_cast<int64_t>(first), length = static_cast<int64_t>(last - first);
    if (docs[first] > 0) {
      const GoldenInputs alone = golden.inputs.document(0, start, length);
      const gemma4::ForwardOutput out = run_forward(model, alone.text());
      EXPECT_LT(peak_error(packed.logits->slice(1, start, length), out.logits.get()), kExact);
      sum += run_loss(model, alone, {.grad_scale = 1.0 / count});
      ++documents;
    }
    first = last;
  }
  EXPECT_GT(documents, 1);
  EXPECT_NEAR(sum / count / whole.loss, 1.0, kExact);
  EXPECT_LT(worst_difference(copy_gradients(model), whole.gradients), kExact);
}

// ---- padding -----------------------------------------------------------------------------------

class Padding : public ::testing::TestWithParam<const char*> {};

// Row 0 of a case up to its last real token.
GoldenInputs unpadded_row(const GoldenCase& golden) {
  const std::vector<uint8_t> real = golden.inputs.rows(0, 1).real();
  return golden.inputs.document(0, 0, std::count(real.begin(), real.end(), 1));
}

void expect_same_as_padded(const GoldenCase& golden, int64_t left, int64_t right) {
  Gemma4ForConditionalGeneration model = golden.model(Dtype::f64);
  const GoldenInputs plain = unpadded_row(golden);
  const GoldenInputs padded = plain.padded(left, right);
  const gemma4::ForwardOutput a = run_forward(model, plain.text());
  const gemma4::ForwardOutput b = run_forward(model, padded.text());
  const int64_t cols = plain.input_ids->dim(1);
  EXPECT_LT(peak_error(b.logits->slice(1, left, cols), a.logits.get()), kExact);
  const LossAndGradients expected = run_gradients(model, plain);
  const LossAndGradients got = run_gradients(model, padded);
  EXPECT_NEAR(got.loss / expected.loss, 1.0, kExact);
  EXPECT_LT(worst_difference(got.gradients, expected.gradients), kExact);
}

TEST_P(Padding, OnTheLeftChangesNothing) { expect_same_as_padded(GoldenCase(GetParam()), 11, 0); }

TEST_P(Padding, OnTheRightChangesNothing) { expect_same_as_padded(GoldenCase(GetParam()), 0, 5); }

// A row of padding alone sees no key at all: its softmax is empty.
TEST_P(Padding, ARowOfPaddingAloneIsHarmless) {
  const GoldenCase golden(GetParam());
  const int64_t cols = golden.inputs.input_ids->dim(1);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Gemma4ForConditionalGeneration model = golden.model(dtype);
    GoldenInputs batch = golden.inputs.rows(0, 2);
    for (int64_t s = 0; s < cols; ++s) {
      batch.attention_mask->as<int64_t>()[cols + s] = 0;
      batch.labels->as<int64_t>()[cols + s] = -100;
    }
    const gemma4::ForwardOutput out = run_forward(model, batch.text());
    EXPECT_TRUE(all_finite(out.logits.get())) << name_of(dtype);
    const LossAndGradients got = run_gradients(model, batch);
    const LossAndGradients alone = run_gradients(model, golden.inputs.rows(0, 1));
    for (const auto& [name, gradient] : got.gradients) {
      EXPECT_TRUE(all_finite(gradient.get())) << name_of(dtype) << " " << name;
    }
    const double rounding = dtype == Dtype::f32 ? 1e-5 : 0.05;
    EXPECT_NEAR(got.loss / alone.loss, 1.0, rounding);
    EXPECT_LT(worst_difference(got.gradients, alone.gradients), rounding);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Padding, ::testing::Values("moe_text", "dense_text", "e_text"),
                         case_name);

}  // namespace
}  // namespace lapidary::test
