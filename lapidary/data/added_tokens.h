#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

// Finds fixed strings in a text: the leftmost first, the longest of those that start there.
class AddedTokenMatcher {
 public:
  struct Match {
    size_t begin = 0;
    size_t length = 0;  // 0: none
    int64_t id = 0;
  };

  void add(std::string content, int64_t id);
  // Call once after the last add.
  void finish();
  bool empty() const { return entries_.empty(); }
  // The first match at or after `from`.
  Match find(std::string_view text, size_t from) const;

 private:
  struct Entry {
    std::string content;
    int64_t id;
  };
  struct Range {
    size_t begin = 0;
    size_t end = 0;
  };

  Match longest_at(std::string_view text, size_t at) const;

  std::vector<Entry> entries_;  // sorted by content, as bytes
  std::array<Range, 256> by_first_byte_{};
};

}  // namespace lapidary
