#pragma once

#include "lapidary/comm/process_group.h"

namespace lapidary {

// What ranks with different rows know together. The loss is a sum divided by the label tokens of
// the whole group, so that losses and gradients are summed, never averaged. A group of one costs
// nothing.
class DataParallel {
 public:
  explicit DataParallel(ProcessGroup& group) : group_(group) {}

  int64_t rank() const { return group_.rank(); }
  int64_t size() const { return group_.size(); }
  int64_t sum(int64_t value) const;
  double sum(double value) const;

 private:
  ProcessGroup& group_;
};

}  // namespace lapidary
