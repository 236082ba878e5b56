#include "lapidary/nn/recompute.h"

#include "lapidary/core/error.h"

namespace lapidary::nn {

Recompute parse_recompute(const std::string& text) {
  if (text == "none") return Recompute::none;
  if (text == "light") return Recompute::light;
  if (text == "block") return Recompute::block;
  fail("recompute", "unknown policy \"" + text + "\"", "use none, light or block");
}

const char* name_of(Recompute policy) {
  switch (policy) {
    case Recompute::none: return "none";
    case Recompute::light: return "light";
    case Recompute::block: return "block";
  }
  fail("recompute", "unknown policy");
}

}  // namespace lapidary::nn
