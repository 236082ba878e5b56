#pragma once

#include <array>
#include <memory>
#include <span>

#include "lapidary/core/tensor.h"

namespace lapidary {

enum class Collective { all_reduce, all_gather, reduce_scatter, all_to_all_v, broadcast, send };
inline constexpr size_t kCollectives = 6;

// Payload that this rank sent to other ranks: with n ranks and b bytes of the tensor that a rank
// gives, all_gather sends (n - 1) b, reduce_scatter (n - 1) / n b, all_reduce both one after the
// other, all_to_all_v the rows that leave, broadcast (n - 1) b at the root, send b.
struct Traffic {
  int64_t calls = 0;
  int64_t bytes = 0;
};

// An operation that was started. Its tensors stay as they are until wait() has returned; that is
// also when an error of the operation is thrown.
class Pending {
 public:
  class Work {
   public:
    virtual ~Work() = default;
    virtual void wait() = 0;
  };
  Pending() = default;  // nothing to wait for
  explicit Pending(std::unique_ptr<Work> work) : work_(std::move(work)) {}
  void wait() {
    if (const std::unique_ptr<Work> work = std::move(work_)) work->wait();
  }

 private:
  std::unique_ptr<Work> work_;
};

// Ranks that work together. Every rank of the group calls the same operations in the same order;
// several may be under way at once. Tensors are contiguous and live in host memory; sums run in the
// tensor's own type, in rank order (f32, f64, i64), so a result is the same on every rank and in
// every run. A group of one costs a copy at most: layers need no special case for it.
//
// Shapes are checked here, once, and throw Error; the private do_... members are what a group
// implements. A rank that does not come throws Error after the group's time limit: see
// comm/bootstrap.h.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  virtual int64_t rank() const = 0;  // 0 .. size() - 1
  virtual int64_t size() const = 0;

  // x = sum over ranks of x, in place. f32, f64 or i64.
  void all_reduce(const Tensor& x);
  void all_reduce(std::span<double> x);
  void all_reduce(std::span<int64_t> x);
  // out = the `in` of rank 0, of rank 1, ...: [n, ...] -> [size n, ...]; any type.
  // `in` may be this rank's part of `out`.
  void all_gather(const ConstTensor& in, const Tensor& out) { start_all_gather(in, out).wait(); }
  [[nodiscard]] Pending start_all_gather(const ConstTensor& in, const Tensor& out);
  // out = rows rank n .. (rank + 1) n of the sum of `in`: [size n, ...] -> [n, ...].
  void reduce_scatter(const ConstTensor& in, const Tensor& out);
  // Rows travel: the first send_rows[0] rows of `in` to rank 0, the next to rank 1, ...; out holds
  // recv_rows[0] rows of rank 0, then those of rank 1, ... Both lists have size() entries, and what
  // a rank sends is what the other expects. Only dimension 0 of `in` and `out` may differ.
  void all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows, const Tensor& out,
                    std::span<const int64_t> recv_rows) {
    start_all_to_all_v(in, send_rows, out, recv_rows).wait();
  }
  [[nodiscard]] Pending start_all_to_all_v(const ConstTensor& in,
                                           std::span<const int64_t> send_rows, const Tensor& out,
                                           std::span<const int64_t> recv_rows);
  // x of `root` to everybody.
  void broadcast(const Tensor& x, int64_t root);
  void barrier() { do_barrier(); }
  // Blocking, in order between each pair of ranks. A rank cannot send to itself.
  void send(const ConstTensor& x, int64_t to);
  void recv(const Tensor& x, int64_t from);

  const Traffic& traffic(Collective operation) const {
    return traffic_[static_cast<size_t>(operation)];
  }
  void reset_traffic() { traffic_ = {}; }

 protected:
  ProcessGroup() = default;

 private:
  void count(Collective operation, int64_t bytes);

  virtual void do_all_reduce(const Tensor& x) = 0;
  virtual Pending do_all_gather(const ConstTensor& in, const Tensor& out) = 0;
  virtual void do_reduce_scatter(const ConstTensor& in, const Tensor& out) = 0;
  virtual Pending do_all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows,
                                  const Tensor& out, std::span<const int64_t> recv_rows) = 0;
  virtual void do_broadcast(const Tensor& x, int64_t root) = 0;
  virtual void do_barrier() = 0;
  virtual void do_send(const ConstTensor& x, int64_t to) = 0;
  virtual void do_recv(const Tensor& x, int64_t from) = 0;

  std::array<Traffic, kCollectives> traffic_{};
};

// A group of one: copies, or nothing at all when in and out are the same memory.
class SelfGroup final : public ProcessGroup {
 public:
  int64_t rank() const override { return 0; }
  int64_t size() const override { return 1; }

 private:
  void do_all_reduce(const Tensor& x) override;
  Pending do_all_gather(const ConstTensor& in, const Tensor& out) override;
  void do_reduce_scatter(const ConstTensor& in, const Tensor& out) override;
  Pending do_all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows,
                          const Tensor& out, std::span<const int64_t> recv_rows) override;
  void do_broadcast(const Tensor& x, int64_t root) override;
  void do_barrier() override {}
  void do_send(const ConstTensor& x, int64_t to) override;
  void do_recv(const Tensor& x, int64_t from) override;
};

}  // namespace lapidary
