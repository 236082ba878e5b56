#include "lapidary/train/trace_inputs.h"

#include <algorithm>

#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"
#include "lapidary/data/sample.h"

namespace lapidary {
namespace {

using gemma4::TextInputs;

bool is_integer(FileDtype dtype) {
  switch (dtype) {
    case FileDtype::f64:
    case FileDtype::f32:
    case FileDtype::f16:
    case FileDtype::bf16: return false;
    default: return true;
  }
}

// One value for all positions, [rows, cols] i64.
OwnedTensor filled(int64_t value, int64_t rows, int64_t cols) {
  OwnedTensor tensor(Backend::cpu, Dtype::i64, {rows, cols});
  std::fill_n(tensor->as<int64_t>(), rows * cols, value);
  return tensor;
}

}  // namespace

TraceInputs::TraceInputs(const std::string& path, Dtype float_dtype) {
  const SafetensorsReader reader(path);
  for (const TensorEntry& entry : reader.entries()) {
    Dtype dtype = Dtype::i64;
    // Masks may be additive: always f32.
    const bool mask = entry.name.find("attention_mask") != std::string::npos;
    if (!is_integer(entry.dtype)) dtype = mask ? Dtype::f32 : float_dtype;
    OwnedTensor tensor(Backend::cpu, dtype, entry.shape);
    convert(entry, tensor.get());
    tensors_.emplace(entry.name, std::move(tensor));
  }
  all_ = {.input_ids = get("input_ids"),
          .inputs_embeds = get("inputs_embeds"),
          .per_layer_inputs = get("per_layer_inputs"),
          .position_ids = get("position_ids"),
          .attention_mask = get("attention_mask"),
          .sliding_attention_mask = get("sliding_attention_mask"),
          .packed_seq_ids = get("packed_seq_ids"),
          .mm_token_type_ids = get("mm_token_type_ids")};
  labels_ = get("labels");
  if (!all_.input_ids.defined() && !all_.inputs_embeds.defined()) {
    fail(path, "holds neither input_ids nor inputs_embeds");
  }
}

ConstTensor TraceInputs::get(const std::string& name) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end()) return {};
  return at->second.get();
}

TextInputs TraceInputs::inputs_of(const Interval& rows) const {
  TextInputs in = all_;
  for (ConstTensor* t : {&in.input_ids, &in.inputs_embeds, &in.per_layer_inputs, &in.position_ids,
                         &in.attention_mask, &in.sliding_attention_mask, &in.packed_seq_ids,
                         &in.mm_token_type_ids}) {
    // Positions and masks of one dimension are those of every row. What does not have the rows of
    // the batch stays as it is: the model refuses it.
    if (t->rank() > 1 && t->dim(0) == this->rows()) *t = t->slice(0, rows.begin, rows.size());
  }
  return in;
}

TraceInputs::Share TraceInputs::share(int64_t ranks, int64_t rank) const {
  Share out{.rows = dealt(rows(), ranks, rank), .inputs = {}, .labels = {}};
  const bool padding = out.rows.empty();
  const Interval taken = padding ? Interval{0, 1} : out.rows;
  out.inputs = inputs_of(taken);
  if (labels_.defined()) {
    out.labels = labels_.dim(0) == rows() ? labels_.slice(0, taken.begin, taken.size()) : labels_;
  }
  if (!padding) return out;
  const int64_t cols = out.inputs.cols();
  out.padding_mask = filled(0, 1, cols);
  out.inputs.attention_mask = out.padding_mask.get();
  out.inputs.sliding_attention_mask = {};
  if (out.inputs.packed_seq_ids.defined()) {
    out.padding_ids = filled(0, 1, cols);
    out.inputs.packed_seq_ids = out.padding_ids.get();
  }
  if (labels_.defined()) {
    out.padding_labels = filled(kIgnoreLabel, 1, cols);
    out.labels = out.padding_labels.get();
  }
  return out;
}

TextInputs TraceInputs::largest_share(int64_t ranks) const {
  TextInputs in = inputs_of(dealt(rows(), ranks, 0));
  const bool some_pad = rows() < ranks;
  if (some_pad && !in.attention_mask.defined()) {
    in.attention_mask = ConstTensor(nullptr, Dtype::i64, {in.rows(), in.cols()});
  }
  return in;
}

}  // namespace lapidary
