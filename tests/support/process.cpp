#include "tests/support/process.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace lapidary::test {
namespace {

constexpr uid_t kNobody = 65534;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void refuse(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

std::string contents(std::FILE* file) {
  const int fd = ::fileno(file);
  std::string text;
  char block[4096];
  while (true) {
    // pread: the offset of the file is the child's.
    const ssize_t n = ::pread(fd, block, sizeof(block), static_cast<off_t>(text.size()));
    if (n <= 0) return text;
    text.append(block, static_cast<size_t>(n));
  }
}

std::vector<std::string> merged_environment(const std::vector<std::string>& added) {
  std::vector<std::string> all = added;
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string entry = *at;
    const std::string name = entry.substr(0, entry.find('=') + 1);
    bool replaced = false;
    for (const std::string& other : added) replaced = replaced || other.rfind(name, 0) == 0;
    if (!replaced) all.push_back(entry);
  }
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (std::string& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

// In the child, before the program starts: system calls only. False when one of them fails.
bool prepare(const ProcessOptions& options, const char* directory, const int (&files)[3]) {
  for (int fd = 0; fd < 3; ++fd) {
    if (::dup2(files[fd], fd) < 0) return false;
  }
  if (directory != nullptr && ::chdir(directory) != 0) return false;
  if (options.max_file_bytes) {
    const rlimit limit{*options.max_file_bytes, *options.max_file_bytes};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return false;
    if (std::signal(SIGXFSZ, SIG_IGN) == SIG_ERR) return false;
  }
  if (options.max_memory_bytes) {
    const rlimit limit{*options.max_memory_bytes, *options.max_memory_bytes};
    if (::setrlimit(RLIMIT_AS, &limit) != 0) return false;
  }
  if (options.unprivileged && ::geteuid() == 0) return ::setuid(kNobody) == 0;
  return true;
}

}  // namespace

Process::Process(const std::vector<std::string>& command, const ProcessOptions& options)
    : in_(std::tmpfile(), std::fclose),
      out_(std::tmpfile(), std::fclose),
      err_(std::tmpfile(), std::fclose),
      start_(now()),
      timeout_(options.timeout_seconds) {
  if (!in_ || !out_ || !err_) refuse("temporary file");
  std::fwrite(options.input.data(), 1, options.input.size(), in_.get());
  std::rewind(in_.get());
  std::vector<std::string> arguments = command;
  std::vector<std::string> environment = merged_environment(options.environment);
  const std::vector<char*> argv = pointers(arguments);
  const std::vector<char*> envp = pointers(environment);
  const char* directory = options.directory.empty() ? nullptr : options.directory.c_str();
  const int files[3] = {::fileno(in_.get()), ::fileno(out_.get()), ::fileno(err_.get())};
  pid_ = ::fork();
  if (pid_ < 0) refuse("fork");
  if (pid_ == 0) {
    if (prepare(options, directory, files)) ::execve(argv[0], argv.data(), envp.data());
    ::_exit(kNotStarted);
  }
}

Process::~Process() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Process::send(int signal) const {
  if (pid_ > 0) ::kill(pid_, signal);
}

void Process::limit_file_bytes(uint64_t bytes) const {
  const rlimit limit{bytes, bytes};
  if (::prlimit(pid_, RLIMIT_FSIZE, &limit, nullptr) != 0) refuse("limit of file sizes");
}

std::string Process::output() const { return contents(out_.get()); }

ProcessResult Process::wait() {
  ProcessResult result;
  int status = 0;
  bool killed = false;
  while (::waitpid(pid_, &status, WNOHANG) == 0) {
    if (!killed && now() - start_ > timeout_) {
      ::kill(pid_, SIGKILL);
      killed = true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  pid_ = -1;
  result.seconds = now() - start_;
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  result.out = contents(out_.get());
  result.err = contents(err_.get());
  return result;
}

ProcessResult run_process(const std::vector<std::string>& command, const ProcessOptions& options) {
  return Process(command, options).wait();
}

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "lapidary-test-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) refuse(name);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string read_file(const std::filesystem::path& path) {
  const std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) refuse(path.string());
  return text.str();
}

void write_file(const std::filesystem::path& path, const std::string& contents) {
  std::ofstream file(path, std::ios::binary);
  file << contents;
  file.close();
  if (!file) refuse(path.string());
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

}  // namespace lapidary::test
