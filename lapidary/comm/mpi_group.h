#pragma once

#include <string>
#include <vector>

#include "lapidary/comm/mpi_api.h"
#include "lapidary/comm/process_group.h"

namespace lapidary {

// A group over an MPI communicator. All operations are exchanges of bytes between pairs of ranks
// (sums are made here, in the order of the ranks); messages of any length travel in pieces. Ranks
// start operations in the same order, and MPI keeps the order of messages between two ranks: that
// is what tells several operations under way apart. A message of another length than expected, and
// a rank that does not come in time, are an Error; after one, messages may still be under way, and
// the process can only end (end_job() of bootstrap.h).
class MpiGroup final : public ProcessGroup {
 public:
  struct Options {
    std::string name;                        // for messages
    int64_t piece_bytes = int64_t{1} << 30;  // of one MPI message, at most; below 2^31
  };
  // Takes the communicator over. world_ranks: of each rank of the group.
  MpiGroup(mpi::Comm comm, std::vector<int64_t> world_ranks, const Options& options);
  ~MpiGroup() override;

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }

  // For all groups of the process: how long one operation may wait for other ranks,
  // from wait() on.
  static void set_timeout(double seconds);

 private:
  class Exchange;  // messages under way

  void do_all_reduce(const Tensor& x) override;
  Pending do_all_gather(const ConstTensor& in, const Tensor& out) override;
  void do_reduce_scatter(const ConstTensor& in, const Tensor& out) override;
  Pending do_all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows,
                          const Tensor& out, std::span<const int64_t> recv_rows) override;
  void do_broadcast(const Tensor& x, int64_t root) override;
  void do_barrier() override;
  void do_send(const ConstTensor& x, int64_t to) override;
  void do_recv(const Tensor& x, int64_t from) override;

  // out = elements bounds[rank] .. bounds[rank + 1] - 1 of x, summed over the ranks in their order.
  void sum_part(const char* operation, const ConstTensor& x, const std::vector<int64_t>& bounds,
                void* out);

  mpi::Comm comm_;
  std::vector<int64_t> world_ranks_;
  Options options_;
  int64_t rank_ = 0, size_ = 1;
  std::vector<char> arrived_;  // grows only
};

}  // namespace lapidary
