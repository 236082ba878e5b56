#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

namespace lapidary {

// Reads a JSON-lines file a line at a time; memory is bounded by the longest allowed line.
class JsonlReader {
 public:
  static constexpr int64_t kDefaultMaxLineBytes = int64_t{64} << 20;

  // Throws Error when the file can't be opened.
  explicit JsonlReader(std::string path, int64_t max_line_bytes = kDefaultMaxLineBytes);

  // Moves to the next line that isn't blank; false at the end of the file. A byte order mark at the
  // start and carriage returns at line ends are no part of a line. Throws Error (file:line) for a
  // line that is too long, or when reading fails.
  bool next();
  // The current line, until the next call of next().
  std::string_view line() const { return line_; }
  int64_t line_number() const { return line_number_; }
  // "file:line" of the current line, for errors.
  std::string where() const;

 private:
  bool fill();

  std::string path_;
  int64_t max_line_bytes_;
  std::ifstream file_;
  std::string buffer_;
  size_t begin_ = 0;  // what lies before is used up
  std::string_view line_;
  int64_t line_number_ = 0;
};

}  // namespace lapidary
