#include "lapidary/comm/process_group.h"

#include <cstring>
#include <string>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

void require(bool condition, const char* operation, const std::string& what) {
  if (!condition) fail(operation, what);
}

void require_dense(const char* operation, const ConstTensor& t) {
  require(t.defined() && t.contiguous(), operation, "needs a contiguous tensor");
}

void require_summable(const char* operation, const ConstTensor& t) {
  const Dtype dtype = t.dtype();
  require(dtype == Dtype::f32 || dtype == Dtype::f64 || dtype == Dtype::i64, operation,
          std::string("sums f32, f64 and i64, not ") + name_of(dtype));
}

// Same type and same dimensions behind the first.
void require_same_rows(const char* operation, const ConstTensor& a, const ConstTensor& b) {
  bool same = a.dtype() == b.dtype() && a.rank() == b.rank();
  for (int i = 1; same && i < a.rank(); ++i) same = a.dim(i) == b.dim(i);
  require(same, operation,
          "rows differ: " + a.shape().str() + " " + name_of(a.dtype()) + " and " + b.shape().str() +
              " " + name_of(b.dtype()));
}

// `whole` has `parts` times the rows of `part`.
void require_parts(const char* operation, const ConstTensor& part, const ConstTensor& whole,
                   int64_t parts) {
  require_dense(operation, part);
  require_dense(operation, whole);
  require_same_rows(operation, part, whole);
  require(
      whole.dim(0) == parts * part.dim(0), operation,
      whole.shape().str() + " is not " + std::to_string(parts) + " times " + part.shape().str());
}

void require_rows(const char* operation, const ConstTensor& t, std::span<const int64_t> rows,
                  int64_t size) {
  require_dense(operation, t);
  require(static_cast<int64_t>(rows.size()) == size, operation,
          std::to_string(rows.size()) + " counts for " + std::to_string(size) + " ranks");
  int64_t left = t.dim(0);
  for (const int64_t n : rows) {
    require(n >= 0 && n <= left, operation, "counts of rows do not fit " + t.shape().str());
    left -= n;
  }
  require(left == 0, operation, "counts of rows do not fill " + t.shape().str());
}

void copy(const ConstTensor& in, const Tensor& out) {
  if (in.numel() > 0 && in.data() != out.data()) {
    std::memmove(out.data(), in.data(), static_cast<size_t>(in.bytes()));
  }
}

}  // namespace

void ProcessGroup::count(Collective operation, int64_t bytes) {
  Traffic& traffic = traffic_[static_cast<size_t>(operation)];
  ++traffic.calls;
  traffic.bytes += bytes;
}

void ProcessGroup::all_reduce(const Tensor& x) {
  require_dense("all_reduce", x);
  require_summable("all_reduce", x);
  count(Collective::all_reduce, 2 * (size() - 1) * x.bytes() / size());
  do_all_reduce(x);
}

void ProcessGroup::all_reduce(std::span<double> x) {
  all_reduce(Tensor(x.data(), Dtype::f64, {static_cast<int64_t>(x.size())}));
}

void ProcessGroup::all_reduce(std::span<int64_t> x) {
  all_reduce(Tensor(x.data(), Dtype::i64, {static_cast<int64_t>(x.size())}));
}

Pending ProcessGroup::start_all_gather(const ConstTensor& in, const Tensor& out) {
  require_parts("all_gather", in, out, size());
  count(Collective::all_gather, (size() - 1) * in.bytes());
  return do_all_gather(in, out);
}

void ProcessGroup::reduce_scatter(const ConstTensor& in, const Tensor& out) {
  require_parts("reduce_scatter", out, in, size());
  require_summable("reduce_scatter", in);
  count(Collective::reduce_scatter, (size() - 1) * out.bytes());
  do_reduce_scatter(in, out);
}

Pending ProcessGroup::start_all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows,
                                         const Tensor& out, std::span<const int64_t> recv_rows) {
  require_rows("all_to_all_v", in, send_rows, size());
  require_rows("all_to_all_v", out, recv_rows, size());
  require_same_rows("all_to_all_v", in, out);
  const int64_t rows = in.dim(0) - send_rows[static_cast<size_t>(rank())];
  count(Collective::all_to_all_v, in.dim(0) == 0 ? 0 : rows * (in.bytes() / in.dim(0)));
  return do_all_to_all_v(in, send_rows, out, recv_rows);
}

void ProcessGroup::broadcast(const Tensor& x, int64_t root) {
  require_dense("broadcast", x);
  require(root >= 0 && root < size(), "broadcast", "no rank " + std::to_string(root));
  count(Collective::broadcast, rank() == root ? (size() - 1) * x.bytes() : 0);
  do_broadcast(x, root);
}

void ProcessGroup::send(const ConstTensor& x, int64_t to) {
  require_dense("send", x);
  require(to >= 0 && to < size() && to != rank(), "send",
          "no other rank " + std::to_string(to) + " in a group of " + std::to_string(size()));
  count(Collective::send, x.bytes());
  do_send(x, to);
}

void ProcessGroup::recv(const Tensor& x, int64_t from) {
  require_dense("recv", x);
  require(from >= 0 && from < size() && from != rank(), "recv",
          "no other rank " + std::to_string(from) + " in a group of " + std::to_string(size()));
  do_recv(x, from);
}

void SelfGroup::do_all_reduce(const Tensor& /*x*/) {}

Pending SelfGroup::do_all_gather(const ConstTensor& in, const Tensor& out) {
  copy(in, out);
  return {};
}

void SelfGroup::do_reduce_scatter(const ConstTensor& in, const Tensor& out) { copy(in, out); }

Pending SelfGroup::do_all_to_all_v(const ConstTensor& in, std::span<const int64_t> send_rows,
                                   const Tensor& out, std::span<const int64_t> recv_rows) {
  require(
      send_rows[0] == recv_rows[0], "all_to_all_v",
      std::to_string(send_rows[0]) + " rows sent, " + std::to_string(recv_rows[0]) + " expected");
  copy(in, out);
  return {};
}

void SelfGroup::do_broadcast(const Tensor& /*x*/, int64_t /*root*/) {}

// send() and recv() refuse every peer in a group of one before they come here.
void SelfGroup::do_send(const ConstTensor& /*x*/, int64_t to) {
  fail("send", "no other rank " + std::to_string(to));
}

void SelfGroup::do_recv(const Tensor& /*x*/, int64_t from) {
  fail("recv", "no other rank " + std::to_string(from));
}

}  // namespace lapidary
