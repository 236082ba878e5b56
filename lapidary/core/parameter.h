#pragma once

#include <string>

#include "lapidary/core/buffer.h"

namespace lapidary {

// How from_config fills a parameter.
enum class Init { normal, normal_pad_row_zero, ones };

// One parameter, under its Hugging Face name. Declared once by its layer and visited by load,
// save, initialisation, optimiser and report. Gradients are kept in accumulate_dtype(dtype).
struct Parameter {
  std::string name;
  Shape shape;
  Init init = Init::normal;
  bool buffer = false;    // saved with the model but never trained (layer_scalar)
  bool trainable = true;  // false: frozen, grad stays undefined
  Tensor value = {};      // undefined until the model allocates it
  Tensor grad = {};       // undefined when frozen or in inference
};

}  // namespace lapidary
