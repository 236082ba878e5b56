#include "lapidary/data/split.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

constexpr int64_t kMaxRows = int64_t{1} << 40;

[[noreturn]] void refuse(std::string_view text) {
  fail("split", fmt::format("\"{}\" is not a split", text),
       "write a name, or a name and rows like train[:1000], train[100:200], train[-50:], "
       "train[:10%]");
}

std::optional<Split::Bound> parse_bound(std::string_view part, std::string_view whole) {
  if (part.empty()) return std::nullopt;
  Split::Bound bound;
  const char* end = part.data() + part.size();
  if (part.ends_with('%')) {
    bound.percent = true;
    --end;
  }
  const auto [stop, error] = std::from_chars(part.data(), end, bound.value);
  const int64_t limit = bound.percent ? 100 : kMaxRows;
  if (error != std::errc() || stop != end || bound.value < -limit || bound.value > limit) {
    refuse(whole);
  }
  return bound;
}

int64_t row_of(const Split::Bound& bound, int64_t total) {
  const int64_t rows = bound.percent
                           ? (std::abs(bound.value) * total + 50) / 100 * (bound.value < 0 ? -1 : 1)
                           : bound.value;
  return std::clamp(rows < 0 ? total + rows : rows, int64_t{0}, total);
}

}  // namespace

bool Split::needs_total() const {
  const auto relative = [](const std::optional<Bound>& b) {
    return b && (b->percent || b->value < 0);
  };
  return relative(begin) || relative(end);
}

Split::Range Split::resolve(int64_t total) const {
  Range range{begin ? row_of(*begin, total) : 0, end ? row_of(*end, total) : total};
  range.end = std::max(range.begin, range.end);
  return range;
}

Split parse_split(std::string_view text) {
  const size_t bracket = text.find('[');
  const std::string_view name = text.substr(0, bracket);
  const auto in_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.';
  };
  if (name.empty() || !std::all_of(name.begin(), name.end(), in_name)) refuse(text);
  if (bracket == text.npos) return {};
  const std::string_view rows = text.substr(bracket + 1);
  const size_t colon = rows.find(':');
  if (!rows.ends_with(']') || colon == rows.npos) refuse(text);
  return {parse_bound(rows.substr(0, colon), text),
          parse_bound(rows.substr(colon + 1, rows.size() - colon - 2), text)};
}

}  // namespace lapidary
