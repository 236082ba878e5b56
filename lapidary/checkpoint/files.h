#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace lapidary {

// Owns a POSIX file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  void close();

 private:
  int fd_ = -1;
};

// All of these throw Error that names the path and the system's reason.

// Opens for reading; Error unless it is a regular file. *bytes: its size.
Descriptor open_regular(const std::string& path, int64_t* bytes);
// The bytes of a regular file; Error if it holds more than max_bytes.
std::string read_text_file(const std::string& path, int64_t max_bytes);
// Writes all bytes, however large.
void write_all(const Descriptor& file, const std::string& path, const void* data, int64_t bytes);
// The same from byte `offset` of the file on, whatever lies there.
void write_at(const Descriptor& file, const std::string& path, const void* data, int64_t bytes,
              int64_t offset);
// Sets the length of a file that was opened for writing and, where the file system can, takes the
// room at once: a full disk shows before hours of writing.
void reserve(const Descriptor& file, const std::string& path, int64_t bytes);
void sync(const Descriptor& file, const std::string& path);
// A whole small file, synced; an older one is replaced.
void write_text_file(const std::string& path, const std::string& contents);
// Makes the names in a directory (a rename) durable.
void sync_directory(const std::string& path);

}  // namespace lapidary
