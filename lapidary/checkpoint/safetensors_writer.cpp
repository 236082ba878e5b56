#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "lapidary/checkpoint/json.h"
#include "lapidary/checkpoint/safetensors.h"
#include "lapidary/checkpoint/safetensors_layout.h"
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

  const Descriptor& file() const { return file_; }
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

}  // namespace

void write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  check_sources(path, tensors);
  std::vector<const TensorSource*> all;
  all.reserve(tensors.size());
  for (const TensorSource& t : tensors) {
    if (t.elements().size() != t.shape.numel())
      fail(path, in_quotes(t.name) + " is given in part", "write the parts with write_hf_model");
    all.push_back(&t);
  }
  const FileLayout layout = lay_out(path, all, metadata);
  TemporaryFile temporary(path);
  reserve(temporary.file(), path, layout.bytes);
  write_at(temporary.file(), path, layout.header.data(), static_cast<int64_t>(layout.header.size()),
           0);
  for (const FileLayout::Place& place : layout.places) write_part(temporary.file(), path, place);
  temporary.publish();
}

}  // namespace lapidary
