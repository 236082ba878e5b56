#include "lapidary/core/device.h"

#include "lapidary/core/error.h"
#include "lapidary/core/gpu.h"

namespace lapidary {

const char* name_of(Backend backend) {
  switch (backend) {
    case Backend::cpu: return "cpu";
    case Backend::ref: return "ref";
    case Backend::cuda: return "cuda";
    case Backend::meta: return "meta";
    case Backend::pinned: return "pinned";
  }
  fail("backend", "unknown backend");
}

Backend parse_backend(const std::string& text) {
  if (text == "cpu") return Backend::cpu;
  if (text != "cuda") fail("device", "unknown device \"" + text + "\"", "use cpu or cuda");
  const std::string why = gpu::unavailable();
  if (!why.empty()) fail("device", "\"cuda\" can't be used: " + why, "use device cpu");
  return Backend::cuda;
}

}  // namespace lapidary
