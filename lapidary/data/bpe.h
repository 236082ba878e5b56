#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "lapidary/data/tokenizer_json.h"

namespace lapidary {

// One token of a text and how many bytes of the text it stands for.
struct Symbol {
  uint32_t id = 0;
  uint32_t length = 0;
};

// Which pairs of adjacent code points some merge joins. A boundary between any other two is never
// crossed: the first token to cross it would be the result of a merge whose left part ends, and
// whose right part begins, exactly there.
class JoinTable {
 public:
  void insert(uint32_t left, uint32_t right);
  bool joins(uint32_t left, uint32_t right) const {
    if ((left | right) < 128U) return (ascii_[left][right >> 6U] >> (right & 63U) & 1U) != 0;
    return find(left, right);
  }

 private:
  bool find(uint32_t left, uint32_t right) const;

  std::array<std::array<uint64_t, 2>, 128> ascii_{};
  std::vector<uint64_t> slots_;  // open addressing; 0 = free (the pair of two NULs is in ascii_)
  int64_t count_ = 0;
};

// Pair of token ids -> rank and id of the merge.
class MergeTable {
 public:
  struct Entry {
    uint64_t pair = UINT64_MAX;  // left << 32 | right; UINT64_MAX: free
    uint32_t rank = 0;
    uint32_t result = 0;
  };

  explicit MergeTable(const std::vector<Merge>& merges);
  const Entry* find(uint32_t left, uint32_t right) const;

 private:
  size_t start_of(uint64_t pair) const;

  std::vector<Entry> slots_;
  int shift_ = 0;
};

// Working memory of one thread: the queue of merges and the chunks seen lately with their tokens.
class BpeScratch {
 private:
  friend class Bpe;

  static constexpr size_t kMaxKey = 22;
  static constexpr size_t kMaxTokens = 8;
  static constexpr size_t kSlots = 1U << 15U;

  struct Node {
    uint32_t id;
    uint32_t length;  // 0: merged into its left neighbour
    int32_t previous;
    int32_t next;
  };
  struct Cached {  // one cache line
    uint8_t key_length = 0;
    uint8_t count = 0;
    char key[kMaxKey] = {};
    uint8_t lengths[kMaxTokens] = {};
    uint32_t ids[kMaxTokens] = {};
  };

  std::vector<Node> nodes_;
  std::vector<uint64_t> queue_;  // rank << 32 | position, a min-heap
  std::vector<Cached> cache_;    // direct-mapped
};

// Byte-pair encoding as Hugging Face tokenizers do it: start from the code points, then always
// apply the merge of lowest rank, the leftmost first. A code point without a token becomes its
// UTF-8 bytes' tokens (<0xNN>), or else `unk`, or else nothing.
class Bpe {
 public:
  // Keeps no reference to `spec`; `vocabulary` must outlive this.
  Bpe(const TokenizerSpec& spec, const Vocabulary& vocabulary);

  // Appends the tokens of `text` (normalised, well-formed UTF-8, below 2 GiB) to `out`.
  void encode(std::string_view text, BpeScratch& scratch, std::vector<Symbol>& out) const;

 private:
  void encode_cached(std::string_view chunk, BpeScratch& scratch, std::vector<Symbol>& out) const;
  void encode_chunk(std::string_view chunk, BpeScratch& scratch, std::vector<Symbol>& out) const;
  void start_nodes(std::string_view chunk, std::vector<BpeScratch::Node>& nodes) const;
  bool add_byte_nodes(std::string_view bytes, std::vector<BpeScratch::Node>& nodes) const;
  void push_merge(int32_t position, BpeScratch& scratch) const;
  void merge_all(BpeScratch& scratch) const;
  std::optional<uint32_t> char_id(std::string_view bytes) const;

  const Vocabulary& vocabulary_;
  MergeTable merges_;
  JoinTable joins_;
  std::vector<uint32_t> results_;         // result of each rank
  std::array<int64_t, 256> byte_ids_{};   // -1: none
  std::array<int64_t, 128> ascii_ids_{};  // -1: none
  std::optional<uint32_t> unk_;
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  bool chunked_ = false;  // the text may be cut where joins_ has no pair
};

}  // namespace lapidary
