#include "lapidary/checkpoint/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

std::string reason() { return std::strerror(errno); }

}  // namespace

void Descriptor::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Descriptor open_regular(const std::string& path, int64_t* bytes) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail(path, "can't be opened for reading: " + reason());
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail(path, "can't be read: " + reason());
  if (!S_ISREG(info.st_mode)) fail(path, "is not a regular file");
  *bytes = static_cast<int64_t>(info.st_size);
  return file;
}

std::string read_text_file(const std::string& path, int64_t max_bytes) {
  int64_t bytes = 0;
  const Descriptor file = open_regular(path, &bytes);
  if (bytes > max_bytes)
    fail(path, "has " + std::to_string(bytes) + " bytes, more than the " +
                   std::to_string(max_bytes) + " such a file may have");
  std::string text(static_cast<size_t>(bytes), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(file.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path, "can't be read: " + reason());
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

void write_all(const Descriptor& file, const std::string& path, const void* data, int64_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const auto chunk = static_cast<size_t>(std::min(bytes, int64_t{1} << 30));
    const ssize_t n = ::write(file.get(), at, chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(path, "can't be written: " + (n < 0 ? reason() : "the device is full"));
    at += n;
    bytes -= n;
  }
}

void write_at(const Descriptor& file, const std::string& path, const void* data, int64_t bytes,
              int64_t offset) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const auto chunk = static_cast<size_t>(std::min(bytes, int64_t{1} << 30));
    const ssize_t n = ::pwrite(file.get(), at, chunk, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(path, "can't be written: " + (n < 0 ? reason() : "the device is full"));
    at += n;
    offset += n;
    bytes -= n;
  }
}

void reserve(const Descriptor& file, const std::string& path, int64_t bytes) {
  if (bytes > 0 && ::fallocate(file.get(), 0, 0, static_cast<off_t>(bytes)) != 0 && errno == ENOSPC)
    fail(path, "needs " + std::to_string(bytes) + " bytes: " + reason(),
         "free some space or write elsewhere");
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0)
    fail(path, "can't be written: " + reason());
}

void sync(const Descriptor& file, const std::string& path) {
  if (::fsync(file.get()) != 0) fail(path, "can't be written to the device: " + reason());
}

void write_text_file(const std::string& path, const std::string& contents) {
  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.get() < 0) fail(path, "can't be written: " + reason());
  write_all(file, path, contents.data(), static_cast<int64_t>(contents.size()));
  sync(file, path);
}

void sync_directory(const std::string& path) {
  const Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0) fail(path, "can't be opened as a directory: " + reason());
  // Some network file systems can't sync a directory; they say EINVAL and order renames themselves.
  if (::fsync(directory.get()) != 0 && errno != EINVAL)
    fail(path, "can't be written to the device: " + reason());
}

}  // namespace lapidary
