#include "lapidary/data/jsonl.h"

#include <fmt/format.h>

#include <filesystem>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

constexpr size_t kBlockBytes = size_t{1} << 16U;

}  // namespace

JsonlReader::JsonlReader(std::string path, int64_t max_line_bytes)
    : path_(std::move(path)), max_line_bytes_(max_line_bytes) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path_, ignored)) {
    fail(path_, "is a folder", "name a .jsonl file");
  }
  file_.open(path_, std::ios::binary);
  if (!file_) fail(path_, "can't be opened", "check the path and its permissions");
}

std::string JsonlReader::where() const { return fmt::format("{}:{}", path_, line_number_); }

// Appends a block of the file to what is left of the buffer; false at the end of the file.
bool JsonlReader::fill() {
  buffer_.erase(0, begin_);
  begin_ = 0;
  const size_t size = buffer_.size();
  buffer_.resize(size + kBlockBytes);
  file_.read(buffer_.data() + size, static_cast<std::streamsize>(kBlockBytes));
  buffer_.resize(size + static_cast<size_t>(file_.gcount()));
  if (file_.bad()) fail(where(), "reading failed");
  return buffer_.size() > size;
}

bool JsonlReader::next() {
  while (true) {
    size_t searched = begin_;
    size_t end = buffer_.find('\n', searched);
    bool more = true;
    while (end == buffer_.npos && more) {
      if (static_cast<int64_t>(buffer_.size() - begin_) > max_line_bytes_) break;
      searched = buffer_.size() - begin_;
      more = fill();
      end = buffer_.find('\n', searched);
    }
    if (end == buffer_.npos && begin_ == buffer_.size()) return false;
    const size_t stop = end == buffer_.npos ? buffer_.size() : end;
    ++line_number_;
    if (static_cast<int64_t>(stop - begin_) > max_line_bytes_) {
      fail(where(), fmt::format("the line is longer than {} bytes", max_line_bytes_),
           "is this a JSON-lines file?");
    }
    line_ = std::string_view(buffer_).substr(begin_, stop - begin_);
    begin_ = end == buffer_.npos ? stop : end + 1;
    if (line_number_ == 1 && line_.starts_with("\xEF\xBB\xBF")) line_.remove_prefix(3);
    if (line_.ends_with('\r')) line_.remove_suffix(1);
    if (line_.find_first_not_of(" \t\r") != line_.npos) return true;
  }
}

}  // namespace lapidary
