#include "lapidary/checkpoint/agreement.h"

#include <algorithm>
#include <array>
#include <exception>
#include <vector>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

constexpr size_t kLongestReason = 4096;

std::string reason_of(const std::exception_ptr& failure) {
  try {
    if (failure) std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return std::string(e.what()).substr(0, kLongestReason);
  } catch (...) {
    return "an unknown failure";
  }
  return "";
}

}  // namespace

void together(ProcessGroup& group, const std::string& where, const std::function<void()>& work) {
  std::exception_ptr failure;
  try {
    work();
  } catch (...) {
    failure = std::current_exception();
  }
  std::vector<int64_t> failed(static_cast<size_t>(group.size()), 0);
  failed[static_cast<size_t>(group.rank())] = failure ? 1 : 0;
  group.all_reduce(failed);
  const auto first = std::find(failed.begin(), failed.end(), 1);
  if (first == failed.end()) return;
  const int64_t rank = first - failed.begin();
  const std::string reason = broadcast_text(group, reason_of(failure), rank);
  if (failure) std::rethrow_exception(failure);
  fail(where, "rank " + std::to_string(rank) + ": " + reason);
}

void on_first_rank(ProcessGroup& group, const std::string& where,
                   const std::function<void()>& work) {
  together(group, where, [&] {
    if (group.rank() == 0) work();
  });
}

std::string broadcast_text(ProcessGroup& group, const std::string& text, int64_t root) {
  if (group.size() == 1) return text;
  std::array<int64_t, 1> size = {static_cast<int64_t>(text.size())};
  group.broadcast(Tensor(size.data(), Dtype::i64, {1}), root);
  if (size[0] == 0) return "";
  std::string out = text;
  out.resize(static_cast<size_t>(size[0]));
  group.broadcast(Tensor(out.data(), Dtype::u8, {size[0]}), root);
  return out;
}

}  // namespace lapidary
