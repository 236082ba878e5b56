#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "lapidary/core/gpu.h"

namespace lapidary {

// Seconds and calls per operation, of the calls made through a Context that carries it.
class Profiler {
 public:
  struct Entry {
    double seconds = 0.0;
    int64_t calls = 0;
  };
  void add(std::string_view op, double seconds) {
    Entry& entry = entries_[std::string(op)];
    entry.seconds += seconds;
    ++entry.calls;
  }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  void clear() { entries_.clear(); }

 private:
  std::map<std::string, Entry> entries_;
};

// Times a scope; does nothing without a profiler. gpu: the stream whose work belongs to the scope
// (waited for at its end), null on the host.
class ProfileScope {
 public:
  using Clock = std::chrono::steady_clock;
  ProfileScope(Profiler* profiler, const char* op, const gpu::Stream* gpu = nullptr)
      : profiler_(profiler), op_(op), gpu_(gpu) {
    if (profiler_ != nullptr) start_ = Clock::now();
  }
  ~ProfileScope() {
    if (profiler_ == nullptr) return;
    if (gpu_ != nullptr) gpu::synchronize(*gpu_);
    profiler_->add(op_, std::chrono::duration<double>(Clock::now() - start_).count());
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  Profiler* profiler_;
  const char* op_;
  const gpu::Stream* gpu_;
  Clock::time_point start_;
};

}  // namespace lapidary
