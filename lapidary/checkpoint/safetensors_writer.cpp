#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/json.h"
#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

// A new file beside its final name; removed again unless it was published.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path) {
    static std::atomic<int> count{0};
    do {
      name_ = fmt::format("{}.incomplete-{}-{}", path, ::getpid(), count++);
      file_ = Descriptor(::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    } while (file_.get() < 0 && errno == EEXIST);
    if (file_.get() < 0) fail(path, std::string("can't be written: ") + std::strerror(errno));
  }
  ~TemporaryFile() {
    if (!name_.empty()) ::unlink(name_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  // Where the file system can, takes the room at once: a full disk shows before hours of writing.
  void reserve(int64_t bytes) {
    if (bytes > 0 && ::fallocate(file_.get(), 0, 0, bytes) != 0 && errno == ENOSPC)
      fail(path_, fmt::format("needs {} bytes: {}", bytes, std::strerror(errno)),
           "free some space or write elsewhere");
  }
  void write(const void* data, int64_t bytes) { write_all(file_, path_, data, bytes); }
  void publish() {
    sync(file_, path_);
    if (::rename(name_.c_str(), path_.c_str()) != 0)
      fail(path_, std::string("can't be replaced: ") + std::strerror(errno));
    name_.clear();
    const std::string parent = std::filesystem::path(path_).parent_path().string();
    sync_directory(parent.empty() ? "." : parent);
  }

 private:
  std::string path_, name_;
  Descriptor file_;
};

void check(const std::string& path, const std::vector<TensorSource>& tensors) {
  Problems problems;
  std::set<std::string_view> names;
  for (const TensorSource& t : tensors) {
    const std::string where = path + ": " + in_quotes(t.name);
    if (!names.insert(t.name).second) problems.add(where, "is given twice");
    if (t.name == "__metadata__") problems.add(where, "is a reserved name");
    if (t.scalar && t.shape != Shape{1}) problems.add(where, "is no scalar: " + t.shape.str());
    if (t.shape.rank() == 0) problems.add(where, "has no shape");
    if (t.data == nullptr && !t.fill && t.shape.numel() > 0) problems.add(where, "has no data");
    if (t.dtype == Dtype::c128 || t.target == Dtype::c128)
      problems.add(where, "c128 can't be stored");
  }
  problems.throw_if_any(path);
}

// The header with its length, padded with spaces to a multiple of 8; *payload: bytes that follow.
std::string compose_header(const std::string& path, const std::vector<const TensorSource*>& tensors,
                           const std::map<std::string, std::string>& metadata, int64_t* payload) {
  nlohmann::ordered_json::object_t members;
  if (!metadata.empty()) members.emplace_back("__metadata__", metadata);
  int64_t offset = 0;
  for (const TensorSource* t : tensors) {
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
    fail(path, "a name is not UTF-8 (" + shortened(e.what()) + ")");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > 100'000'000) fail(path, "too many tensors for one file's header");
  const uint64_t length = text.size();
  std::string head(8, '\0');
  std::memcpy(head.data(), &length, sizeof(length));
  return head + text;
}

void write_tensor(TemporaryFile& file, const TensorSource& t, const std::string& where) {
  const int64_t n = t.shape.numel();
  const FileDtype from = file_dtype_of(t.dtype);
  if (t.data != nullptr && t.dtype == t.target) return file.write(t.data, n * size_of(t.dtype));
  const auto room = [n](Dtype dtype) {
    return static_cast<size_t>(std::min(n, kFillElements) * size_of(dtype));
  };
  std::vector<std::byte> given(t.data == nullptr ? room(t.dtype) : 0);
  std::vector<std::byte> converted(t.dtype != t.target ? room(t.target) : 0);
  for (int64_t first = 0; first < n; first += kFillElements) {
    const int64_t count = std::min(kFillElements, n - first);
    const void* chunk = given.data();
    if (t.data != nullptr)
      chunk = static_cast<const std::byte*>(t.data) + first * size_of(t.dtype);
    else
      t.fill(first, count, given.data());
    if (t.dtype != t.target) {
      convert_elements(chunk, from, converted.data(), t.target, count, where);
      chunk = converted.data();
    }
    file.write(chunk, count * size_of(t.target));
  }
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  check(path, tensors);
  std::vector<const TensorSource*> order;
  order.reserve(tensors.size());
  for (const TensorSource& t : tensors) order.push_back(&t);
  std::stable_sort(order.begin(), order.end(), [](const TensorSource* a, const TensorSource* b) {
    return size_of(a->target) > size_of(b->target);
  });
  int64_t payload = 0;
  const std::string header = compose_header(path, order, metadata, &payload);
  TemporaryFile file(path);
  file.reserve(static_cast<int64_t>(header.size()) + payload);
  file.write(header.data(), static_cast<int64_t>(header.size()));
  for (const TensorSource* t : order) write_tensor(file, *t, path + ": " + t->name);
  file.publish();
}

}  // namespace lapidary
