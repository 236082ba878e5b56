#include "lapidary/data/added_tokens.h"

#include <algorithm>

namespace lapidary {

void AddedTokenMatcher::add(std::string content, int64_t id) {
  entries_.push_back({std::move(content), id});
}

void AddedTokenMatcher::finish() {
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const Entry& a, const Entry& b) { return a.content < b.content; });
  by_first_byte_ = {};
  for (size_t i = 0; i < entries_.size(); ++i) {
    Range& range = by_first_byte_[static_cast<unsigned char>(entries_[i].content[0])];
    if (range.end == 0) range.begin = i;
    range.end = i + 1;
  }
}

// Narrows the sorted entries to those that agree with the text so far, a byte at a time. The
// shortest of them comes first, so an entry that ends here is the first of the range.
AddedTokenMatcher::Match AddedTokenMatcher::longest_at(std::string_view text, size_t at) const {
  Match best;
  auto [begin, end] = by_first_byte_[static_cast<unsigned char>(text[at])];
  for (size_t depth = 1; begin < end; ++depth) {
    if (entries_[begin].content.size() == depth) {
      best = {at, depth, entries_[begin].id};
      while (begin < end && entries_[begin].content.size() == depth) ++begin;
    }
    if (at + depth >= text.size()) break;
    const auto byte = static_cast<unsigned char>(text[at + depth]);
    const auto byte_of = [depth](const Entry& e) {
      return static_cast<unsigned char>(e.content[depth]);
    };
    const auto first = entries_.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = entries_.begin() + static_cast<std::ptrdiff_t>(end);
    const auto low =
        std::partition_point(first, last, [&](const Entry& e) { return byte_of(e) < byte; });
    const auto high =
        std::partition_point(low, last, [&](const Entry& e) { return byte_of(e) == byte; });
    begin = static_cast<size_t>(low - entries_.begin());
    end = static_cast<size_t>(high - entries_.begin());
  }
  return best;
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (by_first_byte_[static_cast<unsigned char>(text[at])].end == 0) continue;
    const Match match = longest_at(text, at);
    if (match.length > 0) return match;
  }
  return {text.size(), 0, 0};
}

}  // namespace lapidary
