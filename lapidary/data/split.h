#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace lapidary {

// A part of a data set: "train", "train[:1000]", "train[100:200]", "train[-50:]", "train[:10%]".
// The name is not used: a file is one split.
struct Split {
  struct Bound {
    int64_t value = 0;  // negative: from the end
    bool percent = false;
  };
  std::optional<Bound> begin;
  std::optional<Bound> end;

  // Whether the range depends on how many rows there are.
  bool needs_total() const;
  // The rows [begin, end) of `total`; a percentage is rounded to the nearest row.
  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
  };
  Range resolve(int64_t total) const;
};

// Throws Error for anything else.
Split parse_split(std::string_view text);

}  // namespace lapidary
