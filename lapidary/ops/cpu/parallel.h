#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

namespace lapidary::ops::cpu {

// Threads that the next parallel loop may use; also what *_scratch_bytes count with.
inline int64_t thread_count() { return omp_get_max_threads(); }

// Keeps the first exception of a parallel region: none may leave it.
class FirstError {
 public:
  template <class F>
  void guard(F&& f) noexcept {
    try {
      f();
    } catch (...) {
#pragma omp critical(lapidary_first_error)
      if (!error_) error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::exception_ptr error_;
};

// f(i) for i in [0, n), in equal contiguous shares.
template <class F>
void parallel_for(int64_t n, F&& f) {
  if (n <= 0) return;
  FirstError error;
#pragma omp parallel for schedule(static) if (n > 1)
  for (int64_t i = 0; i < n; ++i) error.guard([&] { f(i); });
  error.rethrow();
}

// f(i, thread) for i in [0, n), handed out one by one: for tasks of unequal size.
template <class F>
void parallel_tasks(int64_t n, F&& f) {
  if (n <= 0) return;
  FirstError error;
#pragma omp parallel for schedule(dynamic, 1) if (n > 1)
  for (int64_t i = 0; i < n; ++i) {
    error.guard([&] { f(i, static_cast<int64_t>(omp_get_thread_num())); });
  }
  error.rethrow();
}

// f(first, last) over blocks of `block` of the n items.
template <class F>
void parallel_blocks(int64_t n, int64_t block, F&& f) {
  parallel_for((n + block - 1) / block, [&](int64_t i) {
    const int64_t first = i * block;
    f(first, first + block < n ? first + block : n);
  });
}

}  // namespace lapidary::ops::cpu
