#pragma once

#include <string>
#include <vector>

#include "lapidary/models/gemma4/config.h"

namespace lapidary::gemma4 {

// What a tensor of a checkpoint is to the text model.
struct TensorRole {
  enum Kind {
    parameter,    // `name` is the parameter it fills
    passthrough,  // of a tower: not loaded, copied on export
    ignored,      // never needed: rotary tables, embedding scales, dead keys of sharing layers
    surplus,      // unknown
  };
  Kind kind = surplus;
  std::string name;
  bool transposed = false;  // last two dimensions are swapped in the file (NeMo's experts)
  bool unit_scale = false;  // per_expert_scale is multiplied into this tensor already
  std::string warning;      // worth telling the user
};

// Old and foreign names (other prefixes, moe.* instead of experts.* and router.*, NeMo's gate) are
// accepted; what is written bears the new names only.
TensorRole classify_tensor(const Config& config, const std::string& name);

}  // namespace lapidary::gemma4
