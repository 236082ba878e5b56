#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "lapidary/checkpoint/json.h"
#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr int64_t kMaxHeader = 100'000'000;
constexpr const char* kDamaged = "the file is damaged or incomplete, fetch it again";

struct RawEntry {
  std::string name;
  FileDtype dtype = FileDtype::f32;
  std::array<int64_t, kMaxRank> dims{};
  int rank = 0;
  std::array<int64_t, 2> offsets{};
};

// Takes the parser's events and accepts only what the format allows, so that memory stays in
// proportion to the header whatever it holds.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(const std::string& where) : where_(where) {}
  std::vector<RawEntry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("a truth value"); }
  bool number_float(double, const std::string& text) override {
    refuse("the number " + in_quotes(text));
  }
  bool binary(binary_t&) override { refuse("binary data"); }

  bool number_integer(int64_t value) override {
    if (value < 0) refuse("the negative number " + std::to_string(value));
    return number(value);
  }
  bool number_unsigned(uint64_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      refuse("the number " + std::to_string(value));
    return number(static_cast<int64_t>(value));
  }

  bool string(std::string& value) override {
    if (state_ == State::metadata) {
      metadata[key_] = value;
    } else if (state_ == State::entry && key_ == "dtype") {
      const std::optional<FileDtype> dtype = parse_file_dtype(value);
      if (!dtype)
        fail(where_, "tensor " + in_quotes(entry_.name) + " has the element type " +
                         in_quotes(value) + ", which is not supported");
      entry_.dtype = *dtype;
    } else {
      refuse("the string " + in_quotes(value));
    }
    return true;
  }

  bool start_object(size_t) override {
    switch (state_) {
      case State::start: state_ = State::top; return true;
      case State::top:
        state_ = key_ == "__metadata__" ? State::metadata : State::entry;
        entry_ = RawEntry();
        entry_.name = key_;
        seen_ = 0;
        return true;
      default: refuse("an object");
    }
  }

  bool key(std::string& value) override {
    key_ = value;
    if (state_ == State::metadata && metadata.contains(value))
      fail(where_, "the metadata key " + in_quotes(value) + " occurs twice");
    if (state_ != State::entry) return true;
    const int field = value == "dtype" ? 1 : value == "shape" ? 2 : value == "data_offsets" ? 4 : 0;
    if (field == 0)
      fail(where_,
           "tensor " + in_quotes(entry_.name) + " has the unknown field " + in_quotes(value));
    if ((seen_ & field) != 0)
      fail(where_,
           "tensor " + in_quotes(entry_.name) + " has the field " + in_quotes(value) + " twice");
    seen_ |= field;
    return true;
  }

  bool end_object() override {
    if (state_ == State::entry) {
      if (seen_ != 7)
        fail(where_, "tensor " + in_quotes(entry_.name) +
                         " lacks one of the fields dtype, shape and data_offsets");
      entries.push_back(std::move(entry_));
    } else if (state_ == State::metadata) {
      if (has_metadata_) fail(where_, "__metadata__ occurs twice");
      has_metadata_ = true;
    }
    state_ = state_ == State::top ? State::end : State::top;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ != State::entry || key_ == "dtype") refuse("an array");
    state_ = key_ == "shape" ? State::shape : State::offsets;
    count_ = 0;
    return true;
  }

  bool end_array() override {
    if (state_ == State::shape)
      entry_.rank = count_;
    else if (count_ != 2)
      fail(where_, "tensor " + in_quotes(entry_.name) + " needs two data_offsets");
    state_ = State::entry;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) override {
    fail(where_, "the header is not valid JSON (" + shortened(e.what()) + ")", kDamaged);
  }

 private:
  enum class State { start, top, metadata, entry, shape, offsets, end };

  bool number(int64_t value) {
    if (state_ == State::shape) {
      if (count_ == kMaxRank)
        fail(where_, fmt::format("tensor {} has more than {} dimensions", in_quotes(entry_.name),
                                 kMaxRank));
      entry_.dims[static_cast<size_t>(count_++)] = value;
    } else if (state_ == State::offsets) {
      if (count_ == 2) fail(where_, "tensor " + in_quotes(entry_.name) + " needs two data_offsets");
      entry_.offsets[static_cast<size_t>(count_++)] = value;
    } else {
      refuse("the number " + std::to_string(value));
    }
    return true;
  }

  [[noreturn]] void refuse(const std::string& what) const {
    fail(where_, "the header has " + what + " where the format allows none" +
                     (key_.empty() ? "" : ", at key " + in_quotes(key_)));
  }

  const std::string& where_;
  State state_ = State::start;
  std::string key_;
  RawEntry entry_;
  int seen_ = 0;  // bits: dtype, shape, data_offsets
  int count_ = 0;
  bool has_metadata_ = false;
};

// Bytes of the tensor; Error if they, or the strides of an empty tensor, overflow.
int64_t checked_bytes(const RawEntry& raw, const std::string& where) {
  int64_t extent = size_of(raw.dtype);
  bool empty = false;
  for (int i = 0; i < raw.rank; ++i) {
    const int64_t dim = raw.dims[static_cast<size_t>(i)];
    empty = empty || dim == 0;
    if (__builtin_mul_overflow(extent, std::max<int64_t>(dim, 1), &extent))
      fail(where, "the shape of tensor " + in_quotes(raw.name) + " overflows");
  }
  return empty ? 0 : extent;
}

TensorEntry resolve(RawEntry& raw, const std::byte* payload, int64_t payload_bytes,
                    const std::string& where) {
  const int64_t begin = raw.offsets[0], end = raw.offsets[1];
  const int64_t bytes = checked_bytes(raw, where);
  if (begin > end || end > payload_bytes)
    fail(where,
         fmt::format("the bytes {} to {} of tensor {} are outside the file's {} bytes of data",
                     begin, end, in_quotes(raw.name), payload_bytes),
         kDamaged);
  TensorEntry entry;
  entry.dtype = raw.dtype;
  entry.scalar = raw.rank == 0;
  if (entry.scalar) raw.dims[static_cast<size_t>(raw.rank++)] = 1;
  entry.shape = Shape::from(raw.dims.data(), raw.rank);
  if (bytes != end - begin)
    fail(where, fmt::format("tensor {} has {} bytes, but {} {} needs {}", in_quotes(raw.name),
                            end - begin, name_of(raw.dtype), entry.shape.str(), bytes));
  entry.name = std::move(raw.name);
  entry.data = payload + begin;
  entry.bytes = bytes;
  entry.file = where;
  return entry;
}

// Together the tensors must be the whole payload, each byte once.
void check_coverage(const std::vector<TensorEntry>& entries, const std::byte* payload,
                    int64_t payload_bytes, const std::string& where) {
  std::vector<const TensorEntry*> order;
  order.reserve(entries.size());
  for (const TensorEntry& entry : entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
  });
  int64_t covered = 0;
  for (const TensorEntry* entry : order) {
    const int64_t begin = entry->data - payload;
    if (begin < covered)
      fail(where, "tensor " + in_quotes(entry->name) + " overlaps another one", kDamaged);
    if (begin > covered)
      fail(where,
           fmt::format("the bytes {} to {} before tensor {} belong to no tensor", covered, begin,
                       in_quotes(entry->name)),
           kDamaged);
    covered = begin + entry->bytes;
  }
  if (covered != payload_bytes)
    fail(where, fmt::format("{} bytes at the end belong to no tensor", payload_bytes - covered),
         kDamaged);
}

void check_names(const std::vector<TensorEntry>& entries, const std::string& where) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const TensorEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) fail(where, "tensor " + in_quotes(*twice) + " occurs twice");
}

}  // namespace

SafetensorsHeader parse_safetensors(const std::byte* data, int64_t size, const std::string& where) {
  if (size < 8)
    fail(where, fmt::format("{} bytes are too short for a safetensors file", size), kDamaged);
  uint64_t length = 0;
  std::memcpy(&length, data, sizeof(length));
  if (length > static_cast<uint64_t>(kMaxHeader))
    fail(where, fmt::format("the header claims {} bytes, the format allows {}", length, kMaxHeader),
         "is it a safetensors file?");
  if (length > static_cast<uint64_t>(size - 8))
    fail(where, fmt::format("the header claims {} bytes, the file has {}", length, size), kDamaged);
  const char* text = reinterpret_cast<const char*>(data) + 8;
  const std::byte* payload = data + 8 + length;
  const int64_t payload_bytes = size - 8 - static_cast<int64_t>(length);

  // The parser takes a zero byte for the end of its input.
  if (length == 0 || std::memchr(text, 0, length) != nullptr)
    fail(where, "the header is not valid JSON (it is empty or has a zero byte)", kDamaged);
  HeaderHandler handler(where);
  nlohmann::json::sax_parse(text, text + length, &handler);

  SafetensorsHeader header;
  header.metadata = std::move(handler.metadata);
  header.entries.reserve(handler.entries.size());
  for (RawEntry& raw : handler.entries)
    header.entries.push_back(resolve(raw, payload, payload_bytes, where));
  check_names(header.entries, where);
  check_coverage(header.entries, payload, payload_bytes, where);
  return header;
}

}  // namespace lapidary
