#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lapidary {

// Token strings and their ids, both ways. Ids may have holes; strings and ids are unique.
class Vocabulary {
 public:
  // Ids at or above this are refused, so that a bad file can't ask for unbounded memory.
  static constexpr int64_t kMaxId = int64_t{1} << 22;

  enum class Added { kOk, kTokenTwice, kIdTwice, kIdTooLarge };

  Added add(std::string_view token, int64_t id);
  std::optional<uint32_t> find(std::string_view token) const;
  bool has(int64_t id) const;
  // The string of an id; empty when no token has it.
  std::string_view token(int64_t id) const;
  int64_t count() const { return count_; }
  // The largest id + 1.
  int64_t size() const { return static_cast<int64_t>(spans_.size()); }

 private:
  struct Span {
    uint32_t offset = 0;
    uint32_t length = UINT32_MAX;  // UINT32_MAX: no token has this id
  };
  struct Slot {
    uint32_t hash = 0;
    uint32_t id = UINT32_MAX;  // UINT32_MAX: free
  };

  size_t slot_of(std::string_view token, uint32_t hash) const;
  void grow();

  std::string text_;  // every token, one after the other
  std::vector<Span> spans_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  int64_t count_ = 0;
};

}  // namespace lapidary
