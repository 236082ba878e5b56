#pragma once

#include <string>

#include "lapidary/core/buffer.h"

namespace lapidary {

// How from_config fills a parameter.
enum class Init { normal, normal_pad_row_zero, ones };

// How a parameter lies on the ranks. dense: on all of them. expert: its first dimension counts
// experts, which are dealt to the ranks of the ep axis. Either is then sharded: see
// parallel/fsdp.h.
enum class Placement { dense, expert };

// One parameter, under its Hugging Face name. Declared once by its layer and visited by load,
// save, initialisation, optimiser and report. Gradients are kept in accumulate_dtype(dtype).
struct Parameter {
  std::string name;
  Shape shape;  // of the whole tensor, on every rank
  Placement placement = Placement::dense;
  Init init = Init::normal;
  bool buffer = false;    // saved with the model but never trained (layer_scalar)
  bool trainable = true;  // false: frozen, grad stays undefined
  // What layers compute with: the whole tensor, or this rank's experts. Undefined until the model
  // allocates it; of sharded weights meaningful only while their unit is gathered.
  Tensor value = {};
  Tensor grad = {};  // of the same shape; undefined when frozen or in inference
};

}  // namespace lapidary
