#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lapidary/core/error.h"
#include "tests/support/golden.h"
#include "tests/support/tensors.h"

// What forward() takes and gives, beyond the values that the golden cases pin down.
namespace lapidary::test {
namespace {

using gemma4::ForwardOptions;
using gemma4::ForwardOutput;
using gemma4::TextInputs;
using ::testing::HasSubstr;

constexpr double kExact = 1e-12;

class Forward : public ::testing::Test {
 protected:
  ForwardOutput run(const TextInputs& inputs, const ForwardOptions& options = {}) {
    return run_forward(model_, inputs, options);
  }
  std::string error_of(const TextInputs& inputs, const ForwardOptions& options = {}) {
    Context ctx = Context::make(model_.backend(), {1 << 24, 1 << 24});
    try {
      model_.forward(ctx, inputs, options);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  const GoldenCase golden_{"dense_text"};
  const GoldenInputs row_ = golden_.inputs.document(0, 0, 12);
  const ConstTensor ids_ = row_.input_ids.get();
  Gemma4ForConditionalGeneration model_ = golden_.model(Dtype::f64);
};

// ---- sources -----------------------------------------------------------------------------------

TEST_F(Forward, EmbeddingsGiveTheSameAsTheirIds) {
  const ForwardOutput expected = run({.input_ids = ids_}, {.output_hidden_states = true});
  const ForwardOutput got = run({.inputs_embeds = expected.hidden_states[0].get()});
  EXPECT_TRUE(same_bits(got.logits.get(), expected.logits.get()));
}

TEST_F(Forward, ExactlyOneSource) {
  const OwnedTensor embeds = zeros(Dtype::f64, {1, 12, 40});
  EXPECT_THAT(error_of({}), HasSubstr("exactly one of input_ids and inputs_embeds"));
  EXPECT_THAT(error_of({.input_ids = ids_, .inputs_embeds = embeds.get()}),
              HasSubstr("exactly one of input_ids and inputs_embeds"));
}

TEST_F(Forward, IdsOutsideTheVocabularyAreNamedWithTheirPlace) {
  const OwnedTensor ids = from_values(Dtype::i64, {2, 3}, {1, 2, 3, 4, 300, 6});
  EXPECT_THAT(error_of({.input_ids = ids.get()}),
              HasSubstr("token id 300 at row 1, position 1 is outside the vocabulary of 300"));
  ids->as<int64_t>()[4] = -7;
  EXPECT_THAT(error_of({.input_ids = ids.get()}), HasSubstr("token id -7 at row 1, position 1"));
}

TEST_F(Forward, NarrowIntegersAreIdsToo) {
  const ForwardOutput expected = run({.input_ids = ids_});
  const OwnedTensor narrow = cast(ids_, Dtype::i32);
  EXPECT_TRUE(same_bits(run({.input_ids = narrow.get()}).logits.get(), expected.logits.get()));
  const OwnedTensor floats = cast(ids_, Dtype::f32);
  EXPECT_THAT(error_of({.input_ids = floats.get()}), HasSubstr("an integer tensor is wanted"));
}

TEST_F(Forward, WrongShapesAreErrors) {
  const OwnedTensor wrong = zeros(Dtype::i64, {1, 11});
  const OwnedTensor embeds = zeros(Dtype::f64, {1, 12, 39});
  const OwnedTensor dense = zeros(Dtype::u8, {1, 1, 12, 11});
  const OwnedTensor cube = zeros(Dtype::u8, {1, 12, 12});
  const OwnedTensor flat = zeros(Dtype::i64, {12});
  const Tensor& w = wrong.get();
  EXPECT_THAT(error_of({.inputs_embeds = embeds.get()}), HasSubstr("inputs_embeds is [1, 12, 39]"));
  EXPECT_THAT(error_of({.input_ids = ids_, .position_ids = w}), HasSubstr("position_ids is"));
  EXPECT_THAT(error_of({.input_ids = ids_, .attention_mask = w}), HasSubstr("attention_mask is"));
  EXPECT_THAT(error_of({.input_ids = ids_, .packed_seq_ids = w}), HasSubstr("packed_seq_ids is"));
  EXPECT_THAT(error_of({.input_ids = ids_, .mm_token_type_ids = w}),
              HasSubstr("mm_token_type_ids is"));
  EXPECT_THAT(error_of({.input_ids = ids_, .attention_mask = dense.get()}),
              HasSubstr("expected [1, 1, 12, 12]"));
  EXPECT_THAT(error_of({.input_ids = ids_, .attention_mask = cube.get()}),
              HasSubstr("attention_mask is [1, 12, 12]"));
  EXPECT_THAT(error_of({.input_ids = ids_, .sliding_attention_mask = dense.get()}),
              HasSubstr("sliding_attention_mask is"));
  EXPECT_THAT(error_of({.input_ids = flat.get()}), HasSubstr("input_ids is [12]"));
}

TEST_F(Forward, LabelsMustFitTheInputs) {
  const OwnedTensor labels = zeros(Dtype::i64, {1, 11});
  Context ctx = Context::make(model_.backend(), {1 << 24, 1 << 24});
  EXPECT_THROW(model_.loss(ctx, {.input_ids = ids_}, labels.get(), {.backward = false}), Error);
}

// ---- positions ---------------------------------------------------------------------------------

TEST_F(Forward, PositionsCountFromZeroAndOnlyDifferencesMatter) {
  const ForwardOutput expected = run({.input_ids = ids_});
  const OwnedTensor row = zeros(Dtype::i64, {12});
  for (int64_t s = 0; s < 12; ++s) row->as<int64_t>()[s] = s;
  const ForwardOutput by_row = run({.input_ids = ids_, .position_ids = row.get()});
  const ForwardOutput by_batch = run({.input_ids = ids_, .position_ids = row->view({1, 12})});
  EXPECT_TRUE(same_bits(by_row.logits.get(), expected.logits.get()));
  EXPECT_TRUE(same_bits(by_batch.logits.get(), expected.logits.get()));
  for (int64_t s = 0; s < 12; ++s) row->as<int64_t>()[s] = 1000 + s;
  const ForwardOutput moved = run({.input_ids = ids_, .position_ids = row.get()});
  EXPECT_LT(peak_error(moved.logits.get(), expected.logits.get()), 1e-10);
  for (int64_t s = 0; s < 12; ++s) row->as<int64_t>()[s] = 2 * s;
  const ForwardOutput stretched = run({.input_ids = ids_, .position_ids = row.get()});
  EXPECT_GT(peak_error(stretched.logits.get(), expected.logits.get()), 1e-2);
  row->as<int64_t>()[3] = -1;
  EXPECT_THAT(error_of({.input_ids = ids_, .position_ids = row.get()}), HasSubstr("negative"));
}

// ---- masks -------------------------------------------------------------------------------------

class ForwardMasks : public Forward {
 protected:
  // Visible pairs of one row of 12 tokens with the first two masked out, [1, 1, 12, 12].
  static OwnedTensor square(Dtype dtype, int64_t window) {
    OwnedTensor mask = zeros(dtype, {1, 1, 12, 12});
    for (int64_t i = 0; i < 12; ++i) {
      for (int64_t j = 0; j < 12; ++j) {
        const bool visible = j <= i && j > i - window && j >= 2;
        const double blocked = -3.0e38;
        const double value = dtype == Dtype::u8 ? (visible ? 1.0 : 0.0) : (visible ? 0.0 : blocked);
        set(mask.get(), i * 12 + j, value);
      }
    }
    return mask;
  }
  ForwardMasks() {
    padding_ = zeros(Dtype::i64, {1, 12});
    fill(padding_.get(), 1);
    padding_->as<int64_t>()[0] = padding_->as<int64_t>()[1] = 0;
  }
  // Of the real tokens.
  double difference(const ForwardOutput& a, const ForwardOutput& b) {
    return peak_error(a.logits->slice(1, 2, 10), b.logits->slice(1, 2, 10));
  }
  OwnedTensor padding_;
};

TEST_F(ForwardMasks, OneDimensionIsEveryRows) {
  const ForwardOutput by_batch = run({.input_ids = ids_, .attention_mask = padding_.get()});
  const ForwardOutput by_row = run({.input_ids = ids_, .attention_mask = padding_->view({12})});
  EXPECT_TRUE(same_bits(by_row.logits.get(), by_batch.logits.get()));
  const ForwardOutput unmasked = run({.input_ids = ids_});
  EXPECT_GT(difference(by_batch, unmasked), 1e-2);
}

TEST_F(ForwardMasks, FourDimensionsSayTheSameAsTwoWhenBothAreGiven) {
  const ForwardOutput expected = run({.input_ids = ids_, .attention_mask = padding_.get()});
  for (const Dtype dtype : {Dtype::u8, Dtype::f32}) {
    const OwnedTensor full = square(dtype, 12);
    const OwnedTensor sliding = square(dtype, 8);
    const ForwardOutput got = run(
        {.input_ids = ids_, .attention_mask = full.get(), .sliding_attention_mask = sliding.get()});
    EXPECT_LT(difference(got, expected), kExact) << name_of(dtype);
  }
}

// No window is added to a mask that the caller wrote out.
TEST_F(ForwardMasks, FourDimensionsAloneReplaceBothMasks) {
  const OwnedTensor full = square(Dtype::u8, 12);
  const ForwardOutput one = run({.input_ids = ids_, .attention_mask = full.get()});
  const ForwardOutput two =
      run({.input_ids = ids_, .attention_mask = full.get(), .sliding_attention_mask = full.get()});
  EXPECT_TRUE(same_bits(one.logits.get(), two.logits.get()));
  const ForwardOutput windowed = run({.input_ids = ids_, .attention_mask = padding_.get()});
  EXPECT_GT(difference(one, windowed), 1e-2);
}

TEST_F(ForwardMasks, AnAdditiveMaskThatIsNoMaskIsAnError) {
  const OwnedTensor mask = square(Dtype::f32, 12);
  mask->as<float>()[12 * 5] = -1.5F;
  EXPECT_THAT(error_of({.input_ids = ids_, .attention_mask = mask.get()}),
              HasSubstr("an additive mask may hold 0 and values up to -1e4"));
}

// ---- outputs -----------------------------------------------------------------------------------

TEST_F(Forward, KeepsTheLogitsThatWereAskedFor) {
  const ForwardOutput all = run(golden_.inputs.text());
  ASSERT_EQ(all.logits->shape(), (Shape{2, 24, 300}));
  const ForwardOutput last = run(golden_.inputs.text(), {.logits_to_keep = 3});
  ASSERT_EQ(last.logits->shape(), (Shape{2, 3, 300}));
  EXPECT_LT(peak_error(last.logits.get(), all.logits->slice(1, 21, 3)), kExact);
  const ForwardOutput more = run(golden_.inputs.text(), {.logits_to_keep = 100});
  EXPECT_EQ(more.logits->shape(), all.logits->shape());
  const ForwardOutput some = run(golden_.inputs.text(), {.logits_positions = {4, 5, 0, 23}});
  ASSERT_EQ(some.logits->shape(), (Shape{2, 4, 300}));
  EXPECT_LT(peak_error(some.logits->slice(1, 0, 2), all.logits->slice(1, 4, 2)), kExact);
  EXPECT_LT(peak_error(some.logits->slice(1, 2, 1), all.logits->slice(1, 0, 1)), kExact);
  EXPECT_LT(peak_error(some.logits->slice(1, 3, 1), all.logits->slice(1, 23, 1)), kExact);
}

TEST_F(Forward, PositionsOutsideTheRowAreErrors) {
  EXPECT_THAT(error_of({.input_ids = ids_}, {.logits_positions = {12}}), HasSubstr("12"));
  EXPECT_THAT(error_of({.input_ids = ids_}, {.logits_positions = {-1}}), HasSubstr("-1"));
  EXPECT_THAT(error_of({.input_ids = ids_}, {.logits_to_keep = -1}), HasSubstr("-1"));
}

TEST_F(Forward, HiddenStatesAreTheInputsOfTheLayersAndTheEnd) {
  const ForwardOutput out = run({.input_ids = ids_}, {.output_hidden_states = true});
  ASSERT_EQ(out.hidden_states.size(), 7U);
  EXPECT_TRUE(same_bits(out.hidden_states.back().get(), out.last_hidden_state.get()));
  EXPECT_EQ(out.last_hidden_state->shape(), (Shape{1, 12, 40}));
  const Tensor& table = model_.parameter("model.language_model.embed_tokens.weight").value;
  const Tensor row = table.slice(0, ids_.as<int64_t>()[5], 1);
  const double scale = static_cast<double>(std::sqrt(40.0F));
  for (int64_t i = 0; i < 40; ++i) {
    EXPECT_DOUBLE_EQ(at(out.hidden_states[0].get(), 5 * 40 + i), scale * at(row, i));
  }
  EXPECT_TRUE(run({.input_ids = ids_}).hidden_states.empty());
}

TEST_F(Forward, OutputsOutliveTheContext) {
  const ForwardOutput out = run({.input_ids = ids_});
  const OwnedTensor copied = cast(out.logits.get(), Dtype::f64);
  run({.input_ids = row_.document(0, 2, 9).input_ids.get()});
  EXPECT_TRUE(same_bits(out.logits.get(), copied.get()));
}

// ---- per-layer embeddings ----------------------------------------------------------------------

class PerLayer : public ::testing::Test {
 protected:
  Tensor table() {
    return model_.parameter("model.language_model.embed_tokens_per_layer.weight").value;
  }
  const GoldenCase golden_{"e_text"};
  const GoldenInputs row_ = golden_.inputs.document(0, 0, 12);
  Gemma4ForConditionalGeneration model_ = golden_.model(Dtype::f64);
};

TEST_F(PerLayer, EmbeddingsNeedTheTablePartToo) {
  const TextInputs by_ids{.input_ids = row_.input_ids.get()};
  const ForwardOutput expected = run_forward(model_, by_ids, {.output_hidden_states = true});
  const ConstTensor embeds = expected.hidden_states[0].get();
  Context ctx = Context::make(Backend::ref, {1 << 24, 1 << 24});
  EXPECT_THROW(model_.forward(ctx, {.inputs_embeds = embeds}, {}), Error);

  const int64_t width = table().dim(1);
  const OwnedTensor part = zeros(Dtype::f64, {1, 12, width});
  const double scale = static_cast<double>(std::sqrt(12.0F));
  for (int64_t i = 0; i < part->numel(); ++i) {
    const int64_t id = row_.input_ids->as<int64_t>()[i / width];
    set(part.get(), i, scale * at(table(), id * width + i % width));
  }
  const TextInputs by_embeds{.inputs_embeds = embeds, .per_layer_inputs = part.get()};
  const ForwardOutput got = run_forward(model_, by_embeds);
  EXPECT_LT(peak_error(got.logits.get(), expected.logits.get()), kExact);
}

TEST_F(PerLayer, TheTablePartMustFit) {
  const OwnedTensor embeds = zeros(Dtype::f64, {1, 12, 40});
  const OwnedTensor narrow = zeros(Dtype::f64, {1, 12, table().dim(1) - 1});
  Context ctx = Context::make(Backend::ref, {1 << 24, 1 << 24});
  const TextInputs misshaped{.inputs_embeds = embeds.get(), .per_layer_inputs = narrow.get()};
  try {
    model_.forward(ctx, misshaped, {});
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("per_layer_inputs"));
  }
  const OwnedTensor part = zeros(Dtype::f64, {1, 12, table().dim(1)});
  const TextInputs both{.input_ids = row_.input_ids.get(), .per_layer_inputs = part.get()};
  EXPECT_THROW(model_.forward(ctx, both, {}), Error);
}

// A placeholder is looked up as the pad token in both tables, whatever its own rows hold.
TEST_F(PerLayer, PlaceholdersReadThePadRows) {
  const int64_t image = *model_.config().image_token_id;
  const int64_t pad = *model_.config().text.pad_token_id;
  const OwnedTensor ids = cast(row_.input_ids.get(), Dtype::i64);
  ids->as<int64_t>()[4] = pad;
  const ForwardOutput expected = run_forward(model_, {.input_ids = ids.get()});
  ids->as<int64_t>()[4] = image;
  const ForwardOutput got = run_forward(model_, {.input_ids = ids.get()});
  EXPECT_TRUE(same_bits(got.logits.get(), expected.logits.get()));
}

TEST_F(PerLayer, LookupsOfPadAndPlaceholdersTrainNothing) {
  const int64_t image = *model_.config().image_token_id;
  const int64_t pad = *model_.config().text.pad_token_id;
  row_.input_ids->as<int64_t>()[4] = image;
  row_.input_ids->as<int64_t>()[7] = pad;
  const LossAndGradients got = run_gradients(model_, row_);
  const Tensor& gradient =
      got.gradients.at("model.language_model.embed_tokens_per_layer.weight").get();
  const auto largest = [&](int64_t id) {
    double out = 0.0;
    for (const double g : values(gradient.slice(0, id, 1))) out = std::max(out, std::abs(g));
    return out;
  };
  EXPECT_EQ(largest(image), 0.0);
  EXPECT_EQ(largest(pad), 0.0);
  EXPECT_GT(largest(row_.input_ids->as<int64_t>()[5]), 0.0);
}

}  // namespace
}  // namespace lapidary::test
