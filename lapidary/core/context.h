#pragma once

#include "lapidary/core/arena.h"
#include "lapidary/core/profiler.h"

namespace lapidary {

// What an operation needs beside its arguments; passed everywhere, never global.
struct Context {
  Backend backend = Backend::cpu;
  Arena activations;             // what backward reads: pushed in forward, popped in backward
  Arena scratch;                 // lives within one function
  Profiler* profiler = nullptr;  // times every operation, if set; owned by the caller

  // A context whose arenas hold the given bytes; Arena::kCounting on the meta backend.
  static Context make(Backend backend, int64_t activation_bytes, int64_t scratch_bytes) {
    return {backend, Arena("activation", backend, activation_bytes),
            Arena("scratch", backend, scratch_bytes), nullptr};
  }
  static Context meta() { return make(Backend::meta, Arena::kCounting, Arena::kCounting); }
};

}  // namespace lapidary
