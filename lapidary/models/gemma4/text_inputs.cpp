#include "lapidary/models/gemma4/text_inputs.h"

#include <limits>
#include <string>

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"

namespace lapidary::gemma4 {
namespace {

constexpr double kBlockedBelow = -1e4;

int64_t integer_at(const ConstTensor& t, int64_t i) {
  switch (t.dtype()) {
    case Dtype::i64: return t.as<int64_t>()[i];
    case Dtype::i32: return t.as<int32_t>()[i];
    case Dtype::u8: return t.as<uint8_t>()[i];
    default: fail("inputs", std::string("an integer tensor is wanted, not ") + name_of(t.dtype()));
  }
}

bool visible_at(const ConstTensor& t, int64_t i) {
  if (t.dtype() != Dtype::f32) return integer_at(t, i) != 0;
  const double value = t.as<float>()[i];
  if (value == 0.0) return true;
  if (value <= kBlockedBelow) return false;
  fail("attention_mask",
       "an additive mask may hold 0 and values up to -1e4, not " + std::to_string(value));
}

void expect(const char* name, const ConstTensor& t, const Shape& shape) {
  if (!t.defined() || t.shape() == shape) return;
  fail("inputs", std::string(name) + " is " + t.shape().str() + ", expected " + shape.str());
}

class Preparer {
 public:
  Preparer(Context& ctx, const Config& config, const TextInputs& in, int64_t offset)
      : ctx_(ctx), config_(config), in_(in), offset_(offset) {
    out_.rows = in.rows();
    out_.cols = in.cols();
  }

  PreparedInputs run() {
    check_sources();
    ids();
    positions();
    masks();
    documents_and_blocks();
    validity();
    send();
    return out_;
  }

 private:
  bool meta() const { return ctx_.backend == Backend::meta; }
  int64_t tokens() const { return out_.rows * out_.cols; }
  Tensor alloc(Dtype dtype, const Shape& shape) { return host_tensor(ctx_, dtype, shape); }

  void check_sources() const {
    const Shape bs{out_.rows, out_.cols};
    if (in_.input_ids.defined() == in_.inputs_embeds.defined()) {
      fail("inputs", "exactly one of input_ids and inputs_embeds is needed");
    }
    expect("input_ids", in_.input_ids, bs);
    expect("inputs_embeds", in_.inputs_embeds, {out_.rows, out_.cols, config_.text.hidden_size});
    const int64_t p = config_.text.hidden_size_per_layer_input;
    if (p > 0 && in_.inputs_embeds.defined() && !in_.per_layer_inputs.defined()) {
      fail("inputs", "this model has per-layer embeddings: inputs_embeds alone is not enough",
           "pass per_layer_inputs as well, or input_ids");
    }
    if (in_.per_layer_inputs.defined() && (p == 0 || in_.input_ids.defined())) {
      fail("inputs",
           "per_layer_inputs belong beside inputs_embeds, to a model with per-layer "
           "embeddings");
    }
    expect("per_layer_inputs", in_.per_layer_inputs,
           {out_.rows, out_.cols, p * config_.text.num_hidden_layers});
    expect("packed_seq_ids", in_.packed_seq_ids, bs);
    expect("mm_token_type_ids", in_.mm_token_type_ids, bs);
  }

  bool placeholder(int64_t id) const {
    return id == config_.image_token_id || id == config_.video_token_id ||
           id == config_.audio_token_id;
  }

  void ids() {
    if (!in_.input_ids.defined()) return;
    out_.ids = alloc(Dtype::i64, {tokens()});
    out_.grad_ids = alloc(Dtype::i64, {tokens()});
    if (meta()) return;
    const TextConfig& text = config_.text;
    int64_t limit = text.vocab_size;
    if (text.hidden_size_per_layer_input > 0) {
      limit = std::min(limit, text.vocab_size_per_layer_input);
    }
    const int64_t pad = text.pad_token_id.value_or(-1);
    for (int64_t t = 0; t < tokens(); ++t) {
      const int64_t id = integer_at(in_.input_ids, t);
      const bool soft = placeholder(id);
      if (id < 0 || (id >= limit && !soft)) {
        fail("input_ids",
             "token id " + std::to_string(id) + " at row " + std::to_string(t / out_.cols) +
                 ", position " + std::to_string(t % out_.cols) + " is outside the vocabulary of " +
                 std::to_string(limit),
             "use the tokenizer that belongs to the model");
      }
      const int64_t lookup = soft ? std::max<int64_t>(pad, 0) : id;
      out_.ids.as<int64_t>()[t] = lookup;
      out_.grad_ids.as<int64_t>()[t] = soft || id == pad ? -1 : id;
    }
  }

  void positions() {
    const bool shared_row = in_.position_ids.defined() && in_.position_ids.rank() == 1;
    if (shared_row)
      expect("position_ids", in_.position_ids, {out_.cols});
    else
      expect("position_ids", in_.position_ids, {out_.rows, out_.cols});
    out_.positions = alloc(Dtype::i64, {tokens()});
    if (meta()) return;
    for (int64_t t = 0; t < tokens(); ++t) {
      const int64_t column = t % out_.cols;
      int64_t position = offset_ + column;
      if (in_.position_ids.defined()) {
        position = integer_at(in_.position_ids, shared_row ? column : t);
      }
      if (position < 0)
        fail("position_ids", "position " + std::to_string(position) + " is negative");
      out_.positions.as<int64_t>()[t] = position;
    }
  }

  Tensor dense(const char* name, const ConstTensor& mask) {
    expect(name, mask, {out_.rows, 1, out_.cols, out_.cols});
    const Tensor out = alloc(Dtype::u8, {out_.rows, out_.cols, out_.cols});
    for (int64_t i = 0; i < out.numel() && !meta(); ++i) {
      out.as<uint8_t>()[i] = visible_at(mask, i) ? 1 : 0;
    }
    return out;
  }

  void masks() {
    const ConstTensor& mask = in_.attention_mask;
    if (in_.sliding_attention_mask.defined()) {
      out_.dense_sliding = dense("sliding_attention_mask", in_.sliding_attention_mask);
    }
    if (!mask.defined()) return;
    if (mask.rank() == 4) {
      out_.dense_full = dense("attention_mask", mask);
      one_dense_mask_ = !out_.dense_sliding.defined();
      if (one_dense_mask_) out_.dense_sliding = out_.dense_full;
      return;
    }
    const int64_t total = offset_ + out_.cols;
    if (mask.rank() == 1)
      expect("attention_mask", mask, {total});
    else
      expect("attention_mask", mask, {out_.rows, total});
    out_.key_valid = alloc(Dtype::u8, {out_.rows, total});
    for (int64_t i = 0; i < out_.key_valid.numel() && !meta(); ++i) {
      const int64_t source = mask.rank() == 1 ? i % total : i;
      out_.key_valid.as<uint8_t>()[i] = integer_at(mask, source) != 0 ? 1 : 0;
    }
  }

  void documents_and_blocks() {
    const Shape bs{out_.rows, out_.cols};
    if (in_.packed_seq_ids.defined()) {
      if (offset_ > 0) fail("inputs", "packed_seq_ids and a cache exclude each other");
      out_.docs = alloc(Dtype::i32, bs);
      for (int64_t t = 0; t < tokens() && !meta(); ++t) {
        out_.docs.as<int32_t>()[t] = static_cast<int32_t>(integer_at(in_.packed_seq_ids, t));
      }
    }
    // After a cache was filled there are no more image blocks: they act in the prefill only.
    const bool bidirectional = config_.text.use_bidirectional_attention_vision && offset_ == 0;
    if (!in_.mm_token_type_ids.defined() || !bidirectional) return;
    out_.blocks = alloc(Dtype::i32, bs);
    if (meta()) return;
    std::vector<int64_t> types(static_cast<size_t>(out_.cols));
    for (int64_t b = 0; b < out_.rows; ++b) {
      for (int64_t s = 0; s < out_.cols; ++s) {
        types[static_cast<size_t>(s)] = integer_at(in_.mm_token_type_ids, b * out_.cols + s);
      }
      image_blocks(types.data(), out_.cols, out_.blocks.as<int32_t>() + b * out_.cols);
    }
  }

  // Which tokens are worth an expert's time.
  void validity() {
    const bool any = out_.key_valid.defined() || out_.docs.defined() || out_.dense_full.defined();
    if (!any) return;
    out_.token_valid = alloc(Dtype::u8, {tokens()});
    if (meta()) return;
    const int64_t total = offset_ + out_.cols;
    for (int64_t t = 0; t < tokens(); ++t) {
      const int64_t b = t / out_.cols;
      const int64_t s = t % out_.cols;
      bool valid = true;
      if (out_.key_valid.defined()) {
        valid = out_.key_valid.as<uint8_t>()[b * total + offset_ + s] != 0;
      }
      if (out_.docs.defined()) valid = valid && out_.docs.as<int32_t>()[t] > 0;
      if (out_.dense_full.defined()) {
        valid = valid && out_.dense_full.as<uint8_t>()[t * out_.cols + s] != 0;
      }
      out_.token_valid.as<uint8_t>()[t] = valid ? 1 : 0;
    }
  }

  // From here on operations read them, the host no more.
  void send() {
    for (Tensor* t : {&out_.ids, &out_.grad_ids, &out_.positions, &out_.key_valid, &out_.docs,
                      &out_.blocks, &out_.token_valid, &out_.dense_full}) {
      *t = on_device(ctx_, *t);
    }
    out_.dense_sliding = one_dense_mask_ ? out_.dense_full : on_device(ctx_, out_.dense_sliding);
  }

  Context& ctx_;
  const Config& config_;
  const TextInputs& in_;
  int64_t offset_;
  bool one_dense_mask_ = false;  // both layer types read dense_full
  PreparedInputs out_;
};

}  // namespace

PreparedInputs prepare_inputs(Context& ctx, const Config& config, const TextInputs& inputs,
                              int64_t offset) {
  return Preparer(ctx, config, inputs, offset).run();
}

ops::MaskSpec mask_of(const Config& config, const PreparedInputs& inputs, LayerType type,
                      ops::ImageRule rule, int64_t offset, int64_t key_offset) {
  ops::MaskSpec mask;
  mask.sliding = type == LayerType::sliding_attention;
  mask.window = config.text.sliding_window;
  mask.query_offset = offset;
  mask.key_offset = key_offset;
  mask.image_rule = rule;
  mask.dense = mask.sliding ? inputs.dense_sliding : inputs.dense_full;
  if (inputs.key_valid.defined()) {
    mask.key_valid = inputs.key_valid.slice(1, key_offset, inputs.key_valid.dim(1) - key_offset);
  }
  mask.query_docs = mask.key_docs = inputs.docs;
  mask.query_blocks = mask.key_blocks = inputs.blocks;
  return mask;
}

std::vector<uint8_t> dense_mask(const ops::MaskSpec& mask, int64_t rows, int64_t queries,
                                int64_t keys) {
  ops::check_mask(mask, rows, queries, keys);
  std::vector<uint8_t> out;
  out.reserve(static_cast<size_t>(rows * queries * keys));
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t s = 0; s < queries; ++s) {
      for (int64_t t = 0; t < keys; ++t) out.push_back(mask.visible(b, s, t) ? 1 : 0);
    }
  }
  return out;
}

std::vector<float> additive_mask(const ops::MaskSpec& mask, int64_t rows, int64_t queries,
                                 int64_t keys) {
  std::vector<float> out;
  for (const uint8_t visible : dense_mask(mask, rows, queries, keys)) {
    out.push_back(visible != 0 ? 0.0F : std::numeric_limits<float>::lowest());
  }
  return out;
}

std::vector<uint8_t> derive_padding_mask(const ConstTensor& mask, int64_t rows) {
  const int rank = mask.rank();
  const int64_t cols = rank > 0 ? mask.dim(-1) : 0;
  const bool fits = rank == 1 || (rank == 2 && mask.dim(0) == rows) ||
                    (rank == 4 && mask.shape() == Shape{rows, 1, cols, cols});
  if (!fits) {
    fail("attention_mask",
         "has shape " + mask.shape().str() + " for " + std::to_string(rows) + " rows",
         "use [S], [B, S] or [B, 1, S, S]");
  }
  std::vector<uint8_t> out;
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t s = 0; s < cols; ++s) {
      bool real = false;
      if (mask.rank() == 1)
        real = integer_at(mask, s) != 0;
      else if (mask.rank() == 2)
        real = integer_at(mask, b * cols + s) != 0;
      else
        real = visible_at(mask, b * mask.stride(0) + s * cols + s);
      out.push_back(real ? 0 : 1);
    }
  }
  return out;
}

void image_blocks(const int64_t* types, int64_t count, int32_t* blocks) {
  int32_t current = -1;
  bool inside = false;
  for (int64_t s = 0; s < count; ++s) {
    const bool vision = types[s] == 1 || types[s] == 2;
    if (vision && !inside) ++current;
    inside = vision;
    blocks[s] = vision ? current : -1;
  }
}

}  // namespace lapidary::gemma4
