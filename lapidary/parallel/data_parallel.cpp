#include "lapidary/parallel/data_parallel.h"

namespace lapidary {

int64_t DataParallel::sum(int64_t value) const {
  group_.all_reduce(std::span<int64_t>(&value, 1));
  return value;
}

double DataParallel::sum(double value) const {
  group_.all_reduce(std::span<double>(&value, 1));
  return value;
}

}  // namespace lapidary
