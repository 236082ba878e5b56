#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lapidary/checkpoint/file_dtype.h"
#include "lapidary/core/interval.h"
#include "lapidary/core/tensor.h"

namespace lapidary {

// One tensor of a file. `data` may be unaligned: copy it with convert(), don't cast it.
struct TensorEntry {
  std::string name;
  FileDtype dtype = FileDtype::f32;
  Shape shape;          // a scalar, [] in the file, is [1] here
  bool scalar = false;  // [] in the file
  const std::byte* data = nullptr;
  int64_t bytes = 0;
  std::string file;  // path, for messages
};

// dst = entry, converted (see convert_elements). Error unless the shapes are equal and dst is
// contiguous.
void convert(const TensorEntry& entry, const Tensor& dst);
// dst = elements [first, first + dst.numel()) of the flattened entry; dst of any shape, contiguous.
void convert_range(const TensorEntry& entry, int64_t first, const Tensor& dst);

struct SafetensorsHeader {
  std::vector<TensorEntry> entries;  // in the order of the header
  std::map<std::string, std::string> metadata;
};

// Reads the header of a file that lies at [data, data + size); the entries point into it.
// Refuses with an Error: a header longer than 100 MB or than the file, anything but the JSON that
// the format asks for, unknown element types, rank above kMaxRank, sizes that overflow, byte
// ranges that don't match the shape, overlap, leave holes or don't end with the file, and
// duplicate names.
SafetensorsHeader parse_safetensors(const std::byte* data, int64_t size, const std::string& where);

// A file mapped read-only: opening it reads the header alone, pages come as they are touched.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path);
  ~SafetensorsReader();
  SafetensorsReader(SafetensorsReader&& other) noexcept;
  SafetensorsReader& operator=(SafetensorsReader&& other) noexcept;
  SafetensorsReader(const SafetensorsReader&) = delete;
  SafetensorsReader& operator=(const SafetensorsReader&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<TensorEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const TensorEntry* find(std::string_view name) const;  // null when absent

 private:
  std::string path_;
  void* mapping_ = nullptr;
  int64_t bytes_ = 0;
  SafetensorsHeader header_;
  std::vector<size_t> by_name_;  // indices of entries, sorted by name
};

// A tensor to be written, or the part of it that this rank writes.
struct TensorSource {
  std::string name = {};
  Shape shape = {};           // of the whole tensor
  bool scalar = false;        // write the shape [1] as []
  Dtype dtype = Dtype::f32;   // of what `data` or `fill` gives
  Dtype target = Dtype::f32;  // in the file; conversion rounds once, to nearest even
  // The elements of the part, dense; or null, then
  const void* data = nullptr;
  // writes elements [first, first + count) of the flattened whole tensor to `out`. Called with
  // ascending, adjacent ranges within the part, of at most kFillElements.
  std::function<void(int64_t first, int64_t count, void* out)> fill = {};
  // Which elements of the flattened tensor are this rank's to write, {0, 0} for none; unset: all.
  std::optional<Interval> part = {};

  int64_t target_bytes() const { return shape.numel() * size_of(target); }  // of the whole tensor
  Interval elements() const { return part.value_or(Interval{0, shape.numel()}); }
};
constexpr int64_t kFillElements = int64_t{1} << 20;

// Writes `path` as a whole or not at all: to a temporary name beside it, synced, then renamed. On
// any error (a full disk, an exception of `fill`) the temporary file is removed, an older file
// stays as it was, and one Error tells why. Wider element types come first, so that every tensor is
// aligned in the file; within one width the given order is kept. Tensors are whole here; ranks that
// write parts of them do so with write_hf_model (hf.h).
void write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace lapidary
