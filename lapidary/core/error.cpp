#include "lapidary/core/error.h"

namespace lapidary {
namespace {

std::string compose(const std::string& where, const std::string& what, const std::string& fix) {
  std::string text = where.empty() ? what : where + ": " + what;
  if (!fix.empty()) text += "; " + fix;
  return text;
}

}  // namespace

Error::Error(const std::string& where, const std::string& what, const std::string& fix)
    : std::runtime_error(compose(where, what, fix)) {}

void fail(const std::string& where, const std::string& what, const std::string& fix) {
  throw Error(where, what, fix);
}

void Problems::add(const std::string& where, const std::string& what, const std::string& fix) {
  messages_.push_back(compose(where, what, fix));
}

void Problems::throw_if_any(const std::string& where) const {
  if (messages_.empty()) return;
  if (messages_.size() == 1) throw Error("", messages_.front());
  std::string text = std::to_string(messages_.size()) + " mistakes:";
  for (const std::string& message : messages_) text += "\n  " + message;
  throw Error(where, text);
}

}  // namespace lapidary
