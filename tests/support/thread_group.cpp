#include "tests/support/thread_group.h"

#include <omp.h>

#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "lapidary/core/error.h"

namespace lapidary::test {
namespace {

// A rank that waits for one that has failed.
class Abandoned : public std::exception {
 public:
  const char* what() const noexcept override { return "another rank has failed"; }
};

struct Failure {
  std::mutex mutex;
  std::condition_variable changed;
  bool failed = false;
};

// What the ranks of one group see of each other.
class Meeting {
 public:
  Meeting(Failure& failure, int64_t size)
      : failure_(failure),
        size_(size),
        data(static_cast<size_t>(size)),
        rows(static_cast<size_t>(size)) {}

  void barrier() {
    std::unique_lock lock(failure_.mutex);
    const int64_t turn = turn_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++turn_;
      failure_.changed.notify_all();
      return;
    }
    failure_.changed.wait(lock, [&] { return turn_ != turn || failure_.failed; });
    if (turn_ == turn) throw Abandoned();
  }

 private:
  Failure& failure_;
  int64_t size_;
  int64_t arrived_ = 0, turn_ = 0;

 public:
  std::vector<void*> data;                     // of each rank
  std::vector<std::span<const int64_t>> rows;  // sent to each rank
};

class ThreadGroup final : public ProcessGroup {
 public:
  ThreadGroup(std::shared_ptr<Meeting> meeting, int64_t rank, int64_t size)
      : meeting_(std::move(meeting)), rank_(rank), size_(size) {}
  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }

 private:
  char* of(int64_t rank) const {
    return static_cast<char*>(meeting_->data[static_cast<size_t>(rank)]);
  }
  void publish(const void* data) {
    meeting_->data[static_cast<size_t>(rank_)] = const_cast<void*>(data);
    meeting_->barrier();
  }

  // sum[i] = over all ranks, in their order, of x[first + i]
  template <class T>
  void sum(int64_t first, int64_t count, T* out) const {
    for (int64_t i = 0; i < count; ++i) {
      T total = 0;
      for (int64_t r = 0; r < size_; ++r) total += reinterpret_cast<const T*>(of(r))[first + i];
      out[i] = total;
    }
  }
  void sum(Dtype dtype, int64_t first, int64_t count, void* out) const {
    switch (dtype) {
      case Dtype::f32: return sum(first, count, static_cast<float*>(out));
      case Dtype::f64: return sum(first, count, static_cast<double*>(out));
      default: return sum(first, count, static_cast<int64_t*>(out));
    }
  }

  void do_all_reduce(const Tensor& x) override {
    std::vector<char> total(static_cast<size_t>(x.bytes()));
    publish(x.data());
    sum(x.dtype(), 0, x.numel(), total.data());
    meeting_->barrier();
    std::memcpy(x.data(), total.data(), total.size());
    meeting_->barrier();
  }
  Pending do_all_gather(const ConstTensor& in, const Tensor& out) override {
    publish(in.data());
    for (int64_t r = 0; r < size_; ++r) {
      std::memmove(static_cast<char*>(out.data()) + r * in.bytes(), of(r),
                   static_cast<size_t>(in.bytes()));
    }
    meeting_->barrier();
    return {};
  }
  void do_reduce_scatter(const ConstTensor& in, const Tensor& out) override {
    publish(in.data());
    sum(in.dtype(), rank_ * out.numel(), out.numel(), out.data());
    meeting_->barrier();
  }
  Pending do_all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows,
                          const Tensor& out, std::span<const int64_t> recv_rows) override {
    const int64_t rows = std::max(in.dim(0), out.dim(0));
    const int64_t width =
        rows == 0 ? 0 : std::max(in.bytes(), out.bytes()) / rows;  // in and out agree
    meeting_->rows[static_cast<size_t>(rank_)] = send_rows;
    publish(in.data());
    char* to = static_cast<char*>(out.data());
    for (int64_t r = 0; r < size_; ++r) {
      const auto sent = meeting_->rows[static_cast<size_t>(r)];
      int64_t first = 0;
      for (int64_t i = 0; i < rank_; ++i) first += sent[static_cast<size_t>(i)];
      const int64_t count = sent[static_cast<size_t>(rank_)];
      if (count != recv_rows[static_cast<size_t>(r)]) {
        fail("all_to_all_v", "rank " + std::to_string(r) + " sent other rows than expected");
      }
      if (count > 0) std::memcpy(to, of(r) + first * width, static_cast<size_t>(count * width));
      to += count * width;
    }
    meeting_->barrier();
    return {};
  }
  void do_broadcast(const Tensor& x, int64_t root) override {
    publish(x.data());
    if (rank_ != root) std::memcpy(x.data(), of(root), static_cast<size_t>(x.bytes()));
    meeting_->barrier();
  }
  void do_barrier() override { meeting_->barrier(); }
  // Not needed by what is tested with threads.
  void do_send(const ConstTensor&, int64_t) override { fail("send", "not between threads"); }
  void do_recv(const Tensor&, int64_t) override { fail("recv", "not between threads"); }

  std::shared_ptr<Meeting> meeting_;
  int64_t rank_, size_;
};

// Where all threads agree on the groups.
struct Threads {
  explicit Threads(int64_t size)
      : all(failure, size), colors(static_cast<size_t>(size)), made(static_cast<size_t>(size)) {}
  Failure failure;
  Meeting all;
  std::vector<int64_t> colors;
  std::vector<std::shared_ptr<Meeting>> made;  // by the first rank of each group

  std::unique_ptr<ProcessGroup> split(int64_t rank, int64_t color) {
    colors[static_cast<size_t>(rank)] = color;
    all.barrier();
    int64_t size = 0, at = 0, first = -1;
    for (int64_t r = 0; r < static_cast<int64_t>(colors.size()); ++r) {
      if (colors[static_cast<size_t>(r)] != color) continue;
      if (first < 0) first = r;
      if (r < rank) ++at;
      ++size;
    }
    auto& meeting = made[static_cast<size_t>(first)];
    if (rank == first) meeting = std::make_shared<Meeting>(failure, size);
    all.barrier();
    auto group = std::make_unique<ThreadGroup>(meeting, at, size);
    all.barrier();
    return group;
  }
};

}  // namespace

void run_ranks(int64_t size, const std::function<void(int64_t, const SplitWorld&)>& body) {
  Threads threads(size);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(size));
  std::vector<std::thread> ranks;
  for (int64_t rank = 0; rank < size; ++rank) {
    ranks.emplace_back([&, rank] {
      omp_set_num_threads(1);
      try {
        body(rank, [&](int64_t color, const std::string&) { return threads.split(rank, color); });
      } catch (...) {
        errors[static_cast<size_t>(rank)] = std::current_exception();
        const std::lock_guard lock(threads.failure.mutex);
        threads.failure.failed = true;
        threads.failure.changed.notify_all();
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  std::exception_ptr abandoned;
  for (const std::exception_ptr& error : errors) {
    if (!error) continue;
    try {
      std::rethrow_exception(error);
    } catch (const Abandoned&) {
      abandoned = error;
    }
  }
  if (abandoned) std::rethrow_exception(abandoned);
}

std::vector<std::string> errors_of_ranks(int64_t size,
                                         const std::function<void(int64_t, ProcessGroup&)>& body) {
  std::vector<std::string> said(static_cast<size_t>(size));
  run_ranks(size, [&](int64_t rank, const SplitWorld& split) {
    const std::unique_ptr<ProcessGroup> group = split(0, "all");
    try {
      body(rank, *group);
    } catch (const std::runtime_error& e) {
      said[static_cast<size_t>(rank)] = e.what();
    }
  });
  return said;
}

void run_on_mesh(const Mesh& mesh, const std::function<void(const MeshGroups&)>& body) {
  run_ranks(mesh.world_size(),
            [&](int64_t rank, const SplitWorld& split) { body(MeshGroups(mesh, rank, split)); });
}

}  // namespace lapidary::test
