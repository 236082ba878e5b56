#include "lapidary/core/device.h"

#include "lapidary/core/error.h"

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
  if (text == "cuda") return Backend::cuda;
  fail("device", "unknown device \"" + text + "\"", "use cpu or cuda");
}

}  // namespace lapidary
