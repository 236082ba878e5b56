#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

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

// Times a scope; does nothing without a profiler.
class ProfileScope {
 public:
  using Clock = std::chrono::steady_clock;
  ProfileScope(Profiler* profiler, const char* op) : profiler_(profiler), op_(op) {
    if (profiler_ != nullptr) start_ = Clock::now();
  }
  ~ProfileScope() {
    if (profiler_ == nullptr) return;
    profiler_->add(op_, std::chrono::duration<double>(Clock::now() - start_).count());
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  Profiler* profiler_;
  const char* op_;
  Clock::time_point start_;
};

}  // namespace lapidary
