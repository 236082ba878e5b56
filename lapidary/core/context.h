#pragma once

#include "lapidary/core/arena.h"
#include "lapidary/core/gpu.h"
#include "lapidary/core/profiler.h"

namespace lapidary {

// Bytes that a step needs of each arena of a Context.
struct MemoryPlan {
  int64_t activations = 0;
  int64_t scratch = 0;
  int64_t staging = 0;
};

// What an operation needs beside its arguments; passed everywhere, never global.
struct Context {
  Backend backend = Backend::cpu;
  Backend target = Backend::cpu;  // `backend`, or on meta the one whose memory is being counted
  Arena activations;              // what backward reads: pushed in forward, popped in backward
  Arena scratch;                  // lives within one function
  Arena staging;                  // cuda: host memory that the step's inputs are sent from
  Profiler* profiler = nullptr;   // times every operation, if set; owned by the caller
  gpu::Stream stream = nullptr;   // cuda: the default stream

  // A context whose arenas hold the given bytes.
  static Context make(Backend backend, const MemoryPlan& plan = {}) {
    const Backend host = backend == Backend::cuda ? Backend::pinned : backend;
    return {.backend = backend,
            .target = backend,
            .activations = Arena("activation", backend, plan.activations),
            .scratch = Arena("scratch", backend, plan.scratch),
            .staging = Arena("staging", host, plan.staging)};
  }
  // Checks shapes and counts the memory that `target` would use: see plan().
  static Context meta(Backend target = Backend::cpu) {
    constexpr int64_t kCounting = Arena::kCounting;
    Context ctx = make(Backend::meta, {kCounting, kCounting, kCounting});
    ctx.target = target;
    return ctx;
  }
  // The most that was in use so far.
  MemoryPlan plan() const { return {activations.peak(), scratch.peak(), staging.peak()}; }
};

}  // namespace lapidary
