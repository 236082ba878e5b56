#include "lapidary/data/vocabulary.h"

#include <functional>

namespace lapidary {
namespace {

uint32_t hash_of(std::string_view token) {
  return static_cast<uint32_t>(std::hash<std::string_view>{}(token));
}

}  // namespace

size_t Vocabulary::slot_of(std::string_view token_text, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  while (slots_[at].id != UINT32_MAX) {
    if (slots_[at].hash == hash && token(slots_[at].id) == token_text) break;
    at = (at + 1) & mask;
  }
  return at;
}

void Vocabulary::grow() {
  std::vector<Slot> old(slots_.empty() ? 1024 : slots_.size() * 2);
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.id == UINT32_MAX) continue;
    size_t at = slot.hash & mask;
    while (slots_[at].id != UINT32_MAX) at = (at + 1) & mask;
    slots_[at] = slot;
  }
}

Vocabulary::Added Vocabulary::add(std::string_view token_text, int64_t id) {
  if (id < 0 || id >= kMaxId || text_.size() + token_text.size() >= UINT32_MAX) {
    return Added::kIdTooLarge;
  }
  if (has(id)) return Added::kIdTwice;
  if (static_cast<size_t>(count_ + 1) * 2 > slots_.size()) grow();
  const uint32_t hash = hash_of(token_text);
  const size_t slot = slot_of(token_text, hash);
  if (slots_[slot].id != UINT32_MAX) return Added::kTokenTwice;
  if (id >= size()) spans_.resize(static_cast<size_t>(id) + 1);
  spans_[static_cast<size_t>(id)] = {static_cast<uint32_t>(text_.size()),
                                     static_cast<uint32_t>(token_text.size())};
  text_.append(token_text);
  slots_[slot] = {hash, static_cast<uint32_t>(id)};
  ++count_;
  return Added::kOk;
}

std::optional<uint32_t> Vocabulary::find(std::string_view token_text) const {
  if (slots_.empty()) return std::nullopt;
  const Slot& slot = slots_[slot_of(token_text, hash_of(token_text))];
  if (slot.id == UINT32_MAX) return std::nullopt;
  return slot.id;
}

bool Vocabulary::has(int64_t id) const {
  return id >= 0 && id < size() && spans_[static_cast<size_t>(id)].length != UINT32_MAX;
}

std::string_view Vocabulary::token(int64_t id) const {
  if (!has(id)) return {};
  const Span& span = spans_[static_cast<size_t>(id)];
  return std::string_view(text_).substr(span.offset, span.length);
}

}  // namespace lapidary
