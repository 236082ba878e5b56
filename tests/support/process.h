#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

// Programs run as child processes, and the folders they work in.
namespace lapidary::test {

// Exit code of a child that could not start the program.
inline constexpr int kNotStarted = 127;

struct ProcessOptions {
  std::string input = {};                     // standard input; empty: at its end from the start
  std::string directory = {};                 // to work in; empty: the caller's
  std::vector<std::string> environment = {};  // "NAME=value", instead of or beside the caller's
  // Files may not grow beyond this: writing fails as it does on a full disk (EFBIG, no signal).
  std::optional<uint64_t> max_file_bytes = {};
  std::optional<uint64_t> max_memory_bytes = {};  // of address space
  bool unprivileged = false;                      // root gives up its rights first
  double timeout_seconds = 120.0;                 // then it is killed
};

struct ProcessResult {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;      // that ended it; 0: none
  std::string out;
  std::string err;
  double seconds = 0.0;
};

// A running child; killed by the destructor.
class Process {
 public:
  Process(const std::vector<std::string>& command, const ProcessOptions& options = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void send(int signal) const;
  pid_t pid() const { return pid_; }
  // Lowers max_file_bytes, which must have been given, while it runs: the disk becomes full.
  void limit_file_bytes(uint64_t bytes) const;
  // What it has written to standard output so far.
  std::string output() const;
  ProcessResult wait();

 private:
  using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
  File in_, out_, err_;  // temporary files: the child never blocks on a full pipe
  pid_t pid_ = -1;
  double start_ = 0.0;
  double timeout_ = 0.0;
};

ProcessResult run_process(const std::vector<std::string>& command,
                          const ProcessOptions& options = {});

// A new folder, removed with its contents by the destructor.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Both throw std::runtime_error naming the file when it can't be done.
std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, const std::string& contents);
// Without their newlines.
std::vector<std::string> lines_of(const std::string& text);

}  // namespace lapidary::test
