#include "lapidary/checkpoint/safetensors_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "lapidary/checkpoint/json.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

// The header with its length, padded with spaces to a multiple of 8; *payload: bytes that follow.
std::string compose_header(const std::string& where, const std::vector<const TensorSource*>& order,
                           const std::map<std::string, std::string>& metadata, int64_t* payload) {
  nlohmann::ordered_json::object_t members;
  if (!metadata.empty()) members.emplace_back("__metadata__", metadata);
  int64_t offset = 0;
  for (const TensorSource* t : order) {
    nlohmann::ordered_json shape = nlohmann::ordered_json::array();
    for (int i = 0; i < t->shape.rank() && !t->scalar; ++i) shape.push_back(t->shape[i]);
    const int64_t end = offset + t->target_bytes();
    nlohmann::ordered_json entry;
    entry["dtype"] = name_of(file_dtype_of(t->target));
    entry["shape"] = std::move(shape);
    entry["data_offsets"] = {offset, end};
    members.emplace_back(t->name, std::move(entry));
    offset = end;
  }
  *payload = offset;
  std::string text;
  try {
    text = nlohmann::ordered_json(std::move(members)).dump();
  } catch (const nlohmann::json::exception& e) {
    fail(where, "a name is not UTF-8 (" + shortened(e.what()) + ")");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > 100'000'000) fail(where, "too many tensors for one file's header");
  const uint64_t length = text.size();
  std::string head(8, '\0');
  std::memcpy(head.data(), &length, sizeof(length));
  return head + text;
}

}  // namespace

void check_sources(const std::string& where, const std::vector<TensorSource>& tensors) {
  Problems problems;
  std::set<std::string_view> names;
  for (const TensorSource& t : tensors) {
    const std::string at = where + ": " + in_quotes(t.name);
    if (!names.insert(t.name).second) problems.add(at, "is given twice");
    if (t.name == "__metadata__") problems.add(at, "is a reserved name");
    if (t.scalar && t.shape != Shape{1}) problems.add(at, "is no scalar: " + t.shape.str());
    if (t.shape.rank() == 0) problems.add(at, "has no shape");
    const Interval part = t.elements();
    if (part.begin < 0 || part.end < part.begin || part.end > t.shape.numel())
      problems.add(
          at, fmt::format("has no elements {} to {}: {}", part.begin, part.end, t.shape.str()));
    if (t.data == nullptr && !t.fill && !part.empty()) problems.add(at, "has no data");
    if (t.dtype == Dtype::c128 || t.target == Dtype::c128) problems.add(at, "c128 can't be stored");
  }
  problems.throw_if_any(where);
}

FileLayout lay_out(const std::string& where, const std::vector<const TensorSource*>& tensors,
                   const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorSource*> order = tensors;
  std::stable_sort(order.begin(), order.end(), [](const TensorSource* a, const TensorSource* b) {
    return size_of(a->target) > size_of(b->target);
  });
  FileLayout layout;
  int64_t payload = 0;
  layout.header = compose_header(where, order, metadata, &payload);
  int64_t offset = static_cast<int64_t>(layout.header.size());
  layout.bytes = offset + payload;
  for (const TensorSource* t : order) {
    layout.places.push_back({t, offset});
    offset += t->target_bytes();
  }
  return layout;
}

void write_part(const Descriptor& file, const std::string& path, const FileLayout::Place& place) {
  const TensorSource& t = *place.tensor;
  const Interval part = t.elements();
  const int64_t width = size_of(t.target);
  if (part.empty()) return;
  if (t.data != nullptr && t.dtype == t.target)
    return write_at(file, path, t.data, part.size() * width, place.offset + part.begin * width);
  const auto room = [&](Dtype dtype) {
    return static_cast<size_t>(std::min(part.size(), kFillElements) * size_of(dtype));
  };
  std::vector<std::byte> given(t.data == nullptr ? room(t.dtype) : 0);
  std::vector<std::byte> converted(t.dtype != t.target ? room(t.target) : 0);
  for (int64_t first = part.begin; first < part.end; first += kFillElements) {
    const int64_t count = std::min(kFillElements, part.end - first);
    const void* piece = given.data();
    if (t.data != nullptr)
      piece = static_cast<const std::byte*>(t.data) + (first - part.begin) * size_of(t.dtype);
    else
      t.fill(first, count, given.data());
    if (t.dtype != t.target) {
      convert_elements(piece, file_dtype_of(t.dtype), converted.data(), t.target, count,
                       path + ": " + t.name);
      piece = converted.data();
    }
    write_at(file, path, piece, count * width, place.offset + first * width);
  }
}

}  // namespace lapidary
