#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace lapidary {

// The one exception of the library: where it happened, what is wrong, and how to mend it.
// The library never prints and never exits; `main` catches, prints and returns a code.
class Error : public std::runtime_error {
 public:
  // where: a file with line ("recipes/x.yaml:14"), a tensor or an operation. fix: may be empty.
  Error(const std::string& where, const std::string& what, const std::string& fix = "");
};

[[noreturn]] void fail(const std::string& where, const std::string& what,
                       const std::string& fix = "");

// Collects mistakes so that a user sees all of them at once.
class Problems {
 public:
  void add(const std::string& where, const std::string& what, const std::string& fix = "");
  bool empty() const { return messages_.empty(); }
  const std::vector<std::string>& messages() const { return messages_; }
  // Throws one Error that lists every message, a line each; does nothing when there is none.
  void throw_if_any(const std::string& where) const;

 private:
  std::vector<std::string> messages_;
};

}  // namespace lapidary
