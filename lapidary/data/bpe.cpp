#include "lapidary/data/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "lapidary/data/utf8.h"

namespace lapidary {
namespace {

constexpr uint64_t kMix = 0x9E3779B97F4A7C15U;  // 2^64 / golden ratio: spreads keys over the table

uint64_t mixed(uint64_t key) {
  key = (key ^ (key >> 32U)) * kMix;
  return key ^ (key >> 29U);
}

uint32_t first_of(std::string_view token) { return code_point_at(token, 0).value; }

uint32_t last_of(std::string_view token) {
  size_t start = token.size() - 1;
  while (start > 0 && (static_cast<unsigned char>(token[start]) & 0xC0U) == 0x80U) --start;
  return code_point_at(token, static_cast<int64_t>(start)).value;
}

}  // namespace

void JoinTable::insert(uint32_t left, uint32_t right) {
  if ((left | right) < 128U) {
    ascii_[left][right >> 6U] |= uint64_t{1} << (right & 63U);
    return;
  }
  if (find(left, right)) return;
  if (static_cast<size_t>(count_ + 1) * 2 > slots_.size()) {
    std::vector<uint64_t> old(slots_.empty() ? 1024 : slots_.size() * 2);
    old.swap(slots_);
    count_ = 0;
    for (const uint64_t key : old) {
      if (key != 0) insert(static_cast<uint32_t>(key >> 32U), static_cast<uint32_t>(key));
    }
  }
  const uint64_t key = uint64_t{left} << 32U | right;
  const size_t mask = slots_.size() - 1;
  size_t at = mixed(key) & mask;
  while (slots_[at] != 0) at = (at + 1) & mask;
  slots_[at] = key;
  ++count_;
}

bool JoinTable::find(uint32_t left, uint32_t right) const {
  if (slots_.empty()) return false;
  const uint64_t key = uint64_t{left} << 32U | right;
  const size_t mask = slots_.size() - 1;
  size_t at = mixed(key) & mask;
  while (slots_[at] != 0 && slots_[at] != key) at = (at + 1) & mask;
  return slots_[at] == key;
}

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  const size_t size = std::bit_ceil(std::max<size_t>(16, merges.size() * 2));
  slots_.resize(size);
  shift_ = 64 - std::countr_zero(size);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const uint64_t pair = uint64_t{merge.left} << 32U | merge.right;
    size_t at = start_of(pair);
    while (slots_[at].pair != UINT64_MAX && slots_[at].pair != pair) at = (at + 1) & (size - 1);
    // A pair listed twice has its later rank, as in Hugging Face tokenizers.
    slots_[at] = {pair, static_cast<uint32_t>(rank), merge.result};
  }
}

size_t MergeTable::start_of(uint64_t pair) const {
  return static_cast<size_t>(((pair ^ (pair >> 29U)) * kMix) >> shift_);
}

const MergeTable::Entry* MergeTable::find(uint32_t left, uint32_t right) const {
  const uint64_t pair = uint64_t{left} << 32U | right;
  size_t at = start_of(pair);
  while (slots_[at].pair != pair) {
    if (slots_[at].pair == UINT64_MAX) return nullptr;
    at = (at + 1) & (slots_.size() - 1);
  }
  return &slots_[at];
}

Bpe::Bpe(const TokenizerSpec& spec, const Vocabulary& vocabulary)
    : vocabulary_(vocabulary),
      merges_(spec.merges),
      unk_(spec.unk),
      fuse_unk_(spec.fuse_unk),
      byte_fallback_(spec.byte_fallback) {
  const auto id_or_none = [&](std::string_view token) {
    const std::optional<uint32_t> id = vocabulary.find(token);
    return id ? int64_t{*id} : int64_t{-1};
  };
  for (size_t byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = id_or_none(fmt::format("<0x{:02X}>", byte));
  }
  for (size_t c = 0; c < 128; ++c) {
    const char text = static_cast<char>(c);
    ascii_ids_[c] = id_or_none({&text, 1});
  }
  std::vector<bool> is_fallback(static_cast<size_t>(vocabulary.size()));
  for (const int64_t id : byte_ids_) {
    if (id >= 0) is_fallback[static_cast<size_t>(id)] = true;
  }
  if (unk_) is_fallback[*unk_] = true;
  results_.reserve(spec.merges.size());
  bool merges_fallback = false;
  for (const Merge& merge : spec.merges) {
    results_.push_back(merge.result);
    joins_.insert(last_of(vocabulary.token(merge.left)), first_of(vocabulary.token(merge.right)));
    merges_fallback = merges_fallback || is_fallback[merge.left] || is_fallback[merge.right];
  }
  // The rule of JoinTable is about the text of tokens. Byte tokens and `unk` stand for other text
  // than their own, so it holds only where no merge takes them; and an `unk` waits for its
  // successor, so a cut may not come between: bytes must always be available.
  const bool all_bytes = std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end();
  chunked_ = !merges_fallback && byte_fallback_ && all_bytes;
}

void Bpe::encode(std::string_view text, BpeScratch& scratch, std::vector<Symbol>& out) const {
  if (!chunked_) {
    if (!text.empty()) encode_chunk(text, scratch, out);
    return;
  }
  const auto size = static_cast<int64_t>(text.size());
  int64_t start = 0;
  int64_t at = 0;
  uint32_t previous = 0;
  while (at < size) {
    const auto byte = static_cast<unsigned char>(text[static_cast<size_t>(at)]);
    const CodePoint c = byte < 128U ? CodePoint{byte, 1} : code_point_at(text, at);
    if (at > start && !joins_.joins(previous, c.value)) {
      encode_cached(text.substr(static_cast<size_t>(start), static_cast<size_t>(at - start)),
                    scratch, out);
      start = at;
    }
    previous = c.value;
    at += c.length;
  }
  if (start < size) encode_cached(text.substr(static_cast<size_t>(start)), scratch, out);
}

void Bpe::encode_cached(std::string_view chunk, BpeScratch& scratch,
                        std::vector<Symbol>& out) const {
  if (chunk.size() > BpeScratch::kMaxKey) {
    encode_chunk(chunk, scratch, out);
    return;
  }
  if (scratch.cache_.empty()) scratch.cache_.resize(BpeScratch::kSlots);
  BpeScratch::Cached& slot =
      scratch.cache_[std::hash<std::string_view>{}(chunk) & (BpeScratch::kSlots - 1)];
  if (slot.key_length == chunk.size() && std::memcmp(slot.key, chunk.data(), chunk.size()) == 0) {
    for (size_t i = 0; i < slot.count; ++i) out.push_back({slot.ids[i], slot.lengths[i]});
    return;
  }
  const size_t before = out.size();
  encode_chunk(chunk, scratch, out);
  const size_t count = out.size() - before;
  if (count > BpeScratch::kMaxTokens) return;
  slot.key_length = static_cast<uint8_t>(chunk.size());
  slot.count = static_cast<uint8_t>(count);
  std::memcpy(slot.key, chunk.data(), chunk.size());
  for (size_t i = 0; i < count; ++i) {
    slot.ids[i] = out[before + i].id;
    slot.lengths[i] = static_cast<uint8_t>(out[before + i].length);
  }
}

std::optional<uint32_t> Bpe::char_id(std::string_view bytes) const {
  if (bytes.size() > 1) return vocabulary_.find(bytes);
  const int64_t id = ascii_ids_[static_cast<unsigned char>(bytes[0]) & 127U];
  return id < 0 ? std::nullopt : std::optional<uint32_t>(static_cast<uint32_t>(id));
}

bool Bpe::add_byte_nodes(std::string_view bytes, std::vector<BpeScratch::Node>& nodes) const {
  if (!byte_fallback_) return false;
  for (const char byte : bytes) {
    if (byte_ids_[static_cast<unsigned char>(byte)] < 0) return false;
  }
  for (const char byte : bytes) {
    nodes.push_back(
        {static_cast<uint32_t>(byte_ids_[static_cast<unsigned char>(byte)]), 1, -1, -1});
  }
  return true;
}

void Bpe::start_nodes(std::string_view chunk, std::vector<BpeScratch::Node>& nodes) const {
  nodes.clear();
  uint32_t unk_length = 0;  // of the `unk` that waits for the next code point with a token
  const auto flush_unk = [&] {
    if (unk_length > 0) nodes.push_back({*unk_, unk_length, -1, -1});
    unk_length = 0;
  };
  const auto size = static_cast<int64_t>(chunk.size());
  for (int64_t at = 0; at < size;) {
    const int64_t length = code_point_at(chunk, at).length;
    const std::string_view bytes =
        chunk.substr(static_cast<size_t>(at), static_cast<size_t>(length));
    at += length;
    const auto width = static_cast<uint32_t>(length);
    if (const std::optional<uint32_t> id = char_id(bytes)) {
      flush_unk();
      nodes.push_back({*id, width, -1, -1});
    } else if (!add_byte_nodes(bytes, nodes) && unk_) {
      // Byte tokens overtake a waiting `unk`, as they do in Hugging Face tokenizers.
      if (!fuse_unk_) flush_unk();
      unk_length += width;
    }
  }
  flush_unk();
  const auto count = static_cast<int32_t>(nodes.size());
  for (int32_t i = 0; i < count; ++i) {
    nodes[static_cast<size_t>(i)].previous = i - 1;
    nodes[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
}

void Bpe::push_merge(int32_t position, BpeScratch& scratch) const {
  if (position < 0) return;
  const BpeScratch::Node& left = scratch.nodes_[static_cast<size_t>(position)];
  if (left.next < 0) return;
  const MergeTable::Entry* merge =
      merges_.find(left.id, scratch.nodes_[static_cast<size_t>(left.next)].id);
  if (merge == nullptr) return;
  scratch.queue_.push_back(uint64_t{merge->rank} << 32U | static_cast<uint32_t>(position));
  std::push_heap(scratch.queue_.begin(), scratch.queue_.end(), std::greater<>());
}

void Bpe::merge_all(BpeScratch& scratch) const {
  std::vector<BpeScratch::Node>& nodes = scratch.nodes_;
  std::vector<uint64_t>& queue = scratch.queue_;
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    const auto position = static_cast<int32_t>(static_cast<uint32_t>(top));
    const uint32_t result = results_[top >> 32U];
    BpeScratch::Node& left = nodes[static_cast<size_t>(position)];
    if (left.length == 0 || left.next < 0) continue;
    BpeScratch::Node& right = nodes[static_cast<size_t>(left.next)];
    // The entry is stale when one of its tokens has been merged since.
    const MergeTable::Entry* merge = merges_.find(left.id, right.id);
    if (merge == nullptr || merge->result != result) continue;
    left.id = result;
    left.length += right.length;
    right.length = 0;
    left.next = right.next;
    if (right.next >= 0) nodes[static_cast<size_t>(right.next)].previous = position;
    push_merge(left.previous, scratch);
    push_merge(position, scratch);
  }
}

void Bpe::encode_chunk(std::string_view chunk, BpeScratch& scratch,
                       std::vector<Symbol>& out) const {
  start_nodes(chunk, scratch.nodes_);
  scratch.queue_.clear();
  const auto count = static_cast<int32_t>(scratch.nodes_.size());
  for (int32_t i = 0; i + 1 < count; ++i) push_merge(i, scratch);
  merge_all(scratch);
  for (const BpeScratch::Node& node : scratch.nodes_) {
    if (node.length > 0) out.push_back({node.id, node.length});
  }
}

}  // namespace lapidary
