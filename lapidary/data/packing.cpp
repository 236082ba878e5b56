#include "lapidary/data/packing.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "lapidary/core/error.h"
#include "lapidary/data/shuffle.h"

namespace lapidary {
namespace {

// A document's place among the given ones, and how much of it is packed.
struct Item {
  int64_t document = 0;
  int64_t length = 0;
};

std::vector<Item> items_of(std::span<const Sample> documents, const PackOptions& options,
                           PackReport& report) {
  std::vector<Item> items;
  for (size_t i = 0; i < documents.size(); ++i) {
    const auto where = [i] { return fmt::format("document {}", i); };
    const Sample& document = documents[i];
    auto length = static_cast<int64_t>(document.input_ids.size());
    if (length == 0) fail(where(), "has no tokens");
    if (!document.packed_seq_ids.empty()) fail(where(), "is packed already");
    ++report.documents;
    if (length > options.length) {
      if (options.overlong == Overlong::kError) {
        fail(where(), fmt::format("{} tokens don't fit a row of {}", length, options.length),
             "use longer rows, or let long documents be truncated or dropped");
      }
      if (options.overlong == Overlong::kDrop) {
        ++report.dropped;
        continue;
      }
      ++report.truncated;
      length = options.length;
    }
    items.push_back({static_cast<int64_t>(i), length});
  }
  return items;
}

// Longest first, each into the fullest row that still holds it. Returns the items of each row.
std::vector<std::vector<Item>> best_fit(std::span<Item> items, int64_t length) {
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.length > b.length; });
  std::vector<std::vector<Item>> rows;
  std::multimap<int64_t, size_t> room;  // free tokens -> row; equal ones in the order of insertion
  for (const Item& item : items) {
    const auto fit = room.lower_bound(item.length);
    int64_t free = length;
    size_t row = rows.size();
    if (fit == room.end()) {
      rows.emplace_back();
    } else {
      std::tie(free, row) = *fit;
      room.erase(fit);
    }
    rows[row].push_back(item);
    if (free > item.length) room.emplace(free - item.length, row);
  }
  return rows;
}

void append_document(const Sample& document, int64_t length, int32_t number, Sample& row) {
  const auto at = static_cast<std::ptrdiff_t>(row.input_ids.size());
  row.input_ids.insert(row.input_ids.end(), document.input_ids.begin(),
                       document.input_ids.begin() + length);
  row.labels.insert(row.labels.end(), document.labels.begin(), document.labels.begin() + length);
  row.labels[static_cast<size_t>(at)] = kIgnoreLabel;
  if (document.position_ids.empty()) {
    row.position_ids.resize(row.input_ids.size());
    std::iota(row.position_ids.begin() + at, row.position_ids.end(), int64_t{0});
  } else {
    row.position_ids.insert(row.position_ids.end(), document.position_ids.begin(),
                            document.position_ids.begin() + length);
  }
  row.packed_seq_ids.resize(row.input_ids.size(), number);
}

Sample build_row(std::span<const Sample> documents, const std::vector<Item>& items,
                 const PackOptions& options, PackReport& report) {
  Sample row;
  int32_t number = 0;
  for (const Item& item : items) {
    append_document(documents[static_cast<size_t>(item.document)], item.length, ++number, row);
  }
  const auto used = static_cast<int64_t>(row.input_ids.size());
  ++report.rows;
  report.tokens += used;
  report.padding += options.length - used;
  const auto size = static_cast<size_t>(options.length);
  row.input_ids.resize(size, options.pad_id);
  row.labels.resize(size, kIgnoreLabel);
  row.position_ids.resize(size, 0);
  row.packed_seq_ids.resize(size, 0);
  return row;
}

}  // namespace

Packed pack_samples(std::span<const Sample> documents, const PackOptions& options) {
  if (options.length <= 0) fail("packing", fmt::format("row length {}", options.length));
  if (options.window < 0) fail("packing", fmt::format("window {}", options.window));
  Packed packed;
  const std::vector<Item> items = items_of(documents, options, packed.report);
  std::vector<Item> order;
  order.reserve(items.size());
  const auto count = static_cast<int64_t>(items.size());
  for (const int64_t i : shuffled_order(count, options.shuffle, options.seed, "packing", 0)) {
    order.push_back(items[static_cast<size_t>(i)]);
  }
  const int64_t window = options.window == 0 ? std::max<int64_t>(1, count) : options.window;
  for (int64_t begin = 0; begin < count; begin += window) {
    const auto part = std::span(order).subspan(
        static_cast<size_t>(begin), static_cast<size_t>(std::min(window, count - begin)));
    for (const std::vector<Item>& row : best_fit(part, options.length)) {
      packed.rows.push_back(build_row(documents, row, options, packed.report));
    }
  }
  return packed;
}

}  // namespace lapidary
