#include "lapidary/data/sample.h"

#include <algorithm>

namespace lapidary {

int64_t count_targets(const Sample& sample) {
  if (sample.labels.empty()) return 0;
  return std::count_if(sample.labels.begin() + 1, sample.labels.end(),
                       [](int64_t label) { return label != kIgnoreLabel; });
}

}  // namespace lapidary
