#pragma once

#include <span>

#include "lapidary/comm/process_group.h"
#include "lapidary/core/parameter.h"

namespace lapidary {

// Data parallelism in its plain form: every rank holds the whole model and sees its own rows.
//   forward: identity on parameters    backward: sum of parameter gradients over the group
// The loss is a sum divided by the group's count of label tokens, so gradients are summed, never
// averaged. A group of one costs nothing.
class DataParallel {
 public:
  explicit DataParallel(ProcessGroup& group) : group_(group) {}

  int64_t rank() const { return group_.rank(); }
  int64_t size() const { return group_.size(); }
  int64_t sum(int64_t value) const;
  double sum(double value) const;
  // Gradients of all parameters that have one; every rank must pass the same list.
  void reduce_gradients(std::span<Parameter* const> parameters) const;

 private:
  ProcessGroup& group_;
};

}  // namespace lapidary
