#include "lapidary/comm/mpi_group.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>
#include <exception>
#include <limits>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCollectiveTag = 1;
constexpr int kMessageTag = 2;  // of send() and recv()
std::atomic<double> timeout_seconds{600.0};

std::string error_text(int code) {
  char text[256] = {};  // MPI_MAX_ERROR_STRING
  int length = 0;
  mpi::api().error_string(code, text, &length);
  return std::string("MPI: ") + text;
}

void check(int code) {
  if (code != mpi::kSuccess) fail("a group of ranks", error_text(code));
}

// Waiting ranks leave the cores to those that work: several may share one.
class Patience {
 public:
  Patience()
      : deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(timeout_seconds.load()))) {}
  // false: the time is over.
  bool wait() {
    constexpr int kSpins = 50, kYields = 200;
    if (++turns_ < kSpins) return true;
    if (turns_ < kYields) {
      ::sched_yield();
      return true;
    }
    const timespec pause{0, std::min(turns_ - kYields, 50L) * 1000};
    ::nanosleep(&pause, nullptr);
    return Clock::now() < deadline_;
  }

 private:
  Clock::time_point deadline_;
  long turns_ = 0;
};

std::string seconds(double value) {
  const std::string out = std::to_string(value);
  return out.substr(0, out.find('.') + 2);
}

std::string named(const std::vector<int64_t>& ranks) {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return out;
}

template <class T>
void add(const void* from, void* to, int64_t n) {
  const T* x = static_cast<const T*>(from);
  T* sum = static_cast<T*>(to);
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

void add(Dtype dtype, const void* from, void* to, int64_t n) {
  switch (dtype) {
    case Dtype::f32: return add<float>(from, to, n);
    case Dtype::f64: return add<double>(from, to, n);
    default: return add<int64_t>(from, to, n);  // ProcessGroup lets no other type come here
  }
}

void copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, static_cast<size_t>(bytes));
}

const char* at(const void* data, int64_t bytes) { return static_cast<const char*>(data) + bytes; }
char* at(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }

}  // namespace

class MpiGroup::Exchange final : public Pending::Work {
 public:
  Exchange(const MpiGroup& group, const char* operation, int tag = kCollectiveTag)
      : group_(group), operation_(operation), tag_(tag) {}

  void send(const void* data, int64_t bytes, int64_t to) {
    pieces(bytes, [&](int64_t first, int count) {
      Message& message = open_.emplace_back(Message{nullptr, to, kSent});
      check(mpi::api().isend(at(data, first), count, mpi::api().byte, static_cast<int>(to), tag_,
                             group_.comm_, &message.request),
            to);
    });
  }
  void receive(void* data, int64_t bytes, int64_t from) {
    pieces(bytes, [&](int64_t first, int count) {
      Message& message = open_.emplace_back(Message{nullptr, from, count});
      check(mpi::api().irecv(at(data, first), count, mpi::api().byte, static_cast<int>(from), tag_,
                             group_.comm_, &message.request),
            from);
    });
  }
  // Others first that are next in turn, so that not all begin with the same one.
  template <class F>
  void for_each_other(F&& f) const {
    for (int64_t i = 1; i < group_.size_; ++i) f((group_.rank_ + i) % group_.size_);
  }

  void wait() override {
    // Work between start and wait is not waiting.
    Patience patience;
    while (true) {
      std::erase_if(open_, [&](Message& message) { return arrived(message); });
      if (open_.empty()) return;
      if (!patience.wait()) give_up();
    }
  }

 private:
  static constexpr int kSent = -1;
  struct Message {
    mpi::Request request;
    int64_t other;
    int expected;  // bytes to receive, or kSent
  };

  template <class F>
  void pieces(int64_t bytes, F&& f) {
    const int64_t most = group_.options_.piece_bytes;
    int64_t first = 0;
    do {
      const int64_t count = std::min(most, bytes - first);
      f(first, static_cast<int>(count));
      first += count;
    } while (first < bytes);
  }

  bool arrived(Message& message) const {
    int done = 0, count = 0;
    mpi::Status status{};
    check(mpi::api().test(&message.request, &done, &status), message.other);
    if (done == 0) return false;
    if (message.expected == kSent) return true;
    check(mpi::api().get_count(&status, mpi::api().byte, &count), message.other);
    // MPI refuses messages that are too long, and takes those that are too short.
    if (count != message.expected) {
      fail(where(), named({world_rank(message.other)}) + " sent " + std::to_string(count) +
                        " bytes where " + std::to_string(message.expected) + " were expected");
    }
    return true;
  }

  void check(int code, int64_t other) const {
    if (code == mpi::kSuccess) return;
    fail(where(), "with " + named({world_rank(other)}) + ": " + error_text(code));
  }

  int64_t world_rank(int64_t member) const {
    return group_.world_ranks_[static_cast<size_t>(member)];
  }
  std::string where() const {
    return std::string(operation_) + " over " + group_.options_.name + " (" +
           named(group_.world_ranks_) + ")";
  }

  [[noreturn]] void give_up() const {
    std::vector<int64_t> missing;
    for (const Message& m : open_) missing.push_back(world_rank(m.other));
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    fail(where(),
         named({world_rank(group_.rank_)}) + " has waited " + seconds(timeout_seconds.load()) +
             " s for " + named(missing),
         "what it waits for has died, hangs, waits itself, or is slower than "
         "dist_env.timeout_minutes allows");
  }

  const MpiGroup& group_;
  const char* operation_;
  int tag_;
  std::vector<Message> open_;
};

MpiGroup::MpiGroup(mpi::Comm comm, std::vector<int64_t> world_ranks, const Options& options)
    : comm_(comm), world_ranks_(std::move(world_ranks)), options_(options) {
  if (options_.piece_bytes < 1 || options_.piece_bytes > std::numeric_limits<int>::max()) {
    fail("a group of ranks", "pieces of " + std::to_string(options_.piece_bytes) + " bytes",
         "use 1 to 2^31 - 1: counts of MPI are int");
  }
  int rank = 0, size = 0;
  check(mpi::api().comm_set_errhandler(comm_, mpi::api().errors_return));
  check(mpi::api().comm_rank(comm_, &rank));
  check(mpi::api().comm_size(comm_, &size));
  rank_ = rank;
  size_ = size;
}

MpiGroup::~MpiGroup() {
  // Freeing waits for the other ranks: not when this one is on its way out.
  if (std::uncaught_exceptions() == 0) mpi::api().comm_free(&comm_);
}

void MpiGroup::set_timeout(double seconds) { timeout_seconds = seconds; }

Pending MpiGroup::do_all_gather(const ConstTensor& in, const Tensor& out) {
  auto exchange = std::make_unique<Exchange>(*this, "all_gather");
  const int64_t bytes = in.bytes();
  exchange->for_each_other(
      [&](int64_t r) { exchange->receive(at(out.data(), r * bytes), bytes, r); });
  exchange->for_each_other([&](int64_t r) { exchange->send(in.data(), bytes, r); });
  copy(at(out.data(), rank_ * bytes), in.data(), bytes);
  return Pending(std::move(exchange));
}

Pending MpiGroup::do_all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows,
                                  const Tensor& out, std::span<const int64_t> recv_rows) {
  auto exchange = std::make_unique<Exchange>(*this, "all_to_all_v");
  const auto row_bytes = [](const ConstTensor& t) {
    return t.dim(0) == 0 ? 0 : t.bytes() / t.dim(0);
  };
  const auto starts = [this](std::span<const int64_t> rows, int64_t width) {
    std::vector<int64_t> out_of(static_cast<size_t>(size_) + 1);
    for (size_t r = 0; r < rows.size(); ++r) out_of[r + 1] = out_of[r] + rows[r] * width;
    return out_of;
  };
  const std::vector<int64_t> from = starts(send_rows, row_bytes(in));
  const std::vector<int64_t> to = starts(recv_rows, row_bytes(out));
  const auto length = [](const std::vector<int64_t>& s, int64_t r) {
    return s[static_cast<size_t>(r) + 1] - s[static_cast<size_t>(r)];
  };
  // What is empty is not sent: the other side knows.
  exchange->for_each_other([&](int64_t r) {
    if (length(to, r) == 0) return;
    exchange->receive(at(out.data(), to[static_cast<size_t>(r)]), length(to, r), r);
  });
  exchange->for_each_other([&](int64_t r) {
    if (length(from, r) == 0) return;
    exchange->send(at(in.data(), from[static_cast<size_t>(r)]), length(from, r), r);
  });
  if (length(from, rank_) != length(to, rank_)) {
    fail("all_to_all_v", "a rank sends itself other rows than it expects");
  }
  copy(at(out.data(), to[static_cast<size_t>(rank_)]),
       at(in.data(), from[static_cast<size_t>(rank_)]), length(to, rank_));
  return Pending(std::move(exchange));
}

void MpiGroup::sum_part(const char* operation, const ConstTensor& x,
                        const std::vector<int64_t>& bounds, void* out) {
  Exchange exchange(*this, operation);
  const int64_t width = size_of(x.dtype());
  const auto begin = [&](int64_t r) { return bounds[static_cast<size_t>(r)] * width; };
  const int64_t mine = begin(rank_ + 1) - begin(rank_);
  arrived_.resize(std::max(arrived_.size(), static_cast<size_t>(size_ * mine)));
  exchange.for_each_other(
      [&](int64_t r) { exchange.receive(arrived_.data() + r * mine, mine, r); });
  exchange.for_each_other(
      [&](int64_t r) { exchange.send(at(x.data(), begin(r)), begin(r + 1) - begin(r), r); });
  copy(arrived_.data() + rank_ * mine, at(x.data(), begin(rank_)), mine);
  exchange.wait();
  copy(out, arrived_.data(), mine);
  for (int64_t r = 1; r < size_; ++r) {
    add(x.dtype(), arrived_.data() + r * mine, out, mine / width);
  }
}

void MpiGroup::do_reduce_scatter(const ConstTensor& in, const Tensor& out) {
  std::vector<int64_t> bounds;
  for (int64_t r = 0; r <= size_; ++r) bounds.push_back(r * out.numel());
  sum_part("reduce_scatter", in, bounds, out.data());
}

// Every rank sums a part and sends it to the others.
void MpiGroup::do_all_reduce(const Tensor& x) {
  if (size_ == 1) return;
  std::vector<int64_t> bounds;
  for (int64_t r = 0; r <= size_; ++r) bounds.push_back(x.numel() * r / size_);
  const int64_t width = size_of(x.dtype());
  const auto begin = [&](int64_t r) { return bounds[static_cast<size_t>(r)] * width; };
  const auto length = [&](int64_t r) { return begin(r + 1) - begin(r); };
  sum_part("all_reduce", x, bounds, at(x.data(), begin(rank_)));
  Exchange exchange(*this, "all_reduce");
  exchange.for_each_other(
      [&](int64_t r) { exchange.receive(at(x.data(), begin(r)), length(r), r); });
  exchange.for_each_other(
      [&](int64_t r) { exchange.send(at(x.data(), begin(rank_)), length(rank_), r); });
  exchange.wait();
}

void MpiGroup::do_broadcast(const Tensor& x, int64_t root) {
  Exchange exchange(*this, "broadcast");
  if (rank_ == root) {
    exchange.for_each_other([&](int64_t r) { exchange.send(x.data(), x.bytes(), r); });
  } else {
    exchange.receive(x.data(), x.bytes(), root);
  }
  exchange.wait();
}

void MpiGroup::do_barrier() {
  Exchange exchange(*this, "barrier");
  char nothing = 0;
  exchange.for_each_other([&](int64_t r) { exchange.receive(&nothing, 0, r); });
  exchange.for_each_other([&](int64_t r) { exchange.send(&nothing, 0, r); });
  exchange.wait();
}

void MpiGroup::do_send(const ConstTensor& x, int64_t to) {
  Exchange exchange(*this, "send", kMessageTag);
  exchange.send(x.data(), x.bytes(), to);
  exchange.wait();
}

void MpiGroup::do_recv(const Tensor& x, int64_t from) {
  Exchange exchange(*this, "recv", kMessageTag);
  exchange.receive(x.data(), x.bytes(), from);
  exchange.wait();
}

}  // namespace lapidary
