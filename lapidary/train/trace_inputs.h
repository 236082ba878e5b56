#pragma once

#include <map>
#include <string>

#include "lapidary/core/interval.h"
#include "lapidary/models/gemma4/text_inputs.h"

namespace lapidary {

// The tensors of a safetensors file, converted to what gemma4::TextInputs asks for: integers to
// i64, masks of floats to f32, other floats to float_dtype. All on the host.
class TraceInputs {
 public:
  // Errors: a file that cannot be read, neither input_ids nor inputs_embeds.
  TraceInputs(const std::string& path, Dtype float_dtype);

  int64_t rows() const { return all_.rows(); }
  const ConstTensor& labels() const { return labels_; }  // undefined when the file has none

  // What one of the ranks that share out the rows runs; a rank without rows runs one of padding,
  // which belongs to nobody.
  struct Share {
    Interval rows;  // of the batch; empty: padding
    gemma4::TextInputs inputs;
    ConstTensor labels;  // undefined when the file has none
    OwnedTensor padding_mask = {}, padding_ids = {}, padding_labels = {};
  };
  // Lives no longer than this object.
  Share share(int64_t ranks, int64_t rank) const;
  // Inputs without data that ask for as much memory as any rank's share.
  gemma4::TextInputs largest_share(int64_t ranks) const;

 private:
  ConstTensor get(const std::string& name) const;
  gemma4::TextInputs inputs_of(const Interval& rows) const;

  std::map<std::string, OwnedTensor> tensors_;
  gemma4::TextInputs all_;
  ConstTensor labels_;
};

}  // namespace lapidary
