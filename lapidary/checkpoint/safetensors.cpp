#include "lapidary/checkpoint/safetensors.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>

#include "lapidary/checkpoint/files.h"
#include "lapidary/core/error.h"

namespace lapidary {

void convert_range(const TensorEntry& entry, int64_t first, const Tensor& dst) {
  const std::string where = entry.file + ": " + entry.name;
  const int64_t count = dst.numel(), available = entry.shape.numel();
  if (first < 0 || count > available || first > available - count)
    fail(where, fmt::format("elements {} to {} are outside its {}", first, first + count,
                            entry.shape.str()));
  if (!dst.contiguous()) fail(where, "the destination is not contiguous");
  if (count > 0 && dst.data() == nullptr) fail(where, "the destination has no memory");
  convert_elements(entry.data + first * size_of(entry.dtype), entry.dtype, dst.data(), dst.dtype(),
                   count, where);
}

void convert(const TensorEntry& entry, const Tensor& dst) {
  if (dst.shape() != entry.shape)
    fail(entry.file + ": " + entry.name,
         "has shape " + entry.shape.str() + ", expected " + dst.shape().str());
  convert_range(entry, 0, dst);
}

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path) {
  const Descriptor file = open_regular(path, &bytes_);
  if (bytes_ < 8) {
    parse_safetensors(nullptr, bytes_, path);  // says that it is too short
  }
  void* mapping =
      ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (mapping == MAP_FAILED)
    fail(path, std::string("can't be mapped into memory: ") + std::strerror(errno));
  try {
    header_ = parse_safetensors(static_cast<const std::byte*>(mapping), bytes_, path);
    by_name_.resize(header_.entries.size());
    std::iota(by_name_.begin(), by_name_.end(), size_t{0});
    std::sort(by_name_.begin(), by_name_.end(), [this](size_t a, size_t b) {
      return header_.entries[a].name < header_.entries[b].name;
    });
  } catch (...) {
    ::munmap(mapping, static_cast<size_t>(bytes_));
    throw;
  }
  mapping_ = mapping;
}

SafetensorsReader::~SafetensorsReader() {
  if (mapping_ != nullptr) ::munmap(mapping_, static_cast<size_t>(bytes_));
}

SafetensorsReader::SafetensorsReader(SafetensorsReader&& other) noexcept
    : path_(std::move(other.path_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      header_(std::exchange(other.header_, {})),
      by_name_(std::exchange(other.by_name_, {})) {}

SafetensorsReader& SafetensorsReader::operator=(SafetensorsReader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(mapping_, other.mapping_);
  std::swap(bytes_, other.bytes_);
  std::swap(header_, other.header_);
  std::swap(by_name_, other.by_name_);
  return *this;
}

const TensorEntry* SafetensorsReader::find(std::string_view name) const {
  const auto it = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [this](size_t i, std::string_view n) { return header_.entries[i].name < n; });
  if (it == by_name_.end() || header_.entries[*it].name != name) return nullptr;
  return &header_.entries[*it];
}

}  // namespace lapidary
