#include "lapidary/data/tokenizer_sax.h"

#include <fmt/format.h>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr int64_t kMaxNodes = 4'000'000;

// Receives the parser's events. Inside model.vocab and model.merges they go to the compact tables,
// elsewhere to a document under construction.
class RawTokenizerSink {
 public:
  explicit RawTokenizerSink(const std::string& where) : where_(where) {}

  bool null() { return scalar(json(nullptr)); }
  bool boolean(bool value) { return scalar(json(value)); }
  bool number_integer(json::number_integer_t value) { return scalar(json(value)); }
  bool number_unsigned(json::number_unsigned_t value) {
    if (mode_ == Mode::kVocabulary) {
      add_token(value);
      return true;
    }
    return scalar(json(value));
  }
  bool number_float(json::number_float_t value, const std::string& /*text*/) {
    return scalar(json(value));
  }
  bool string(std::string& value) {
    if (mode_ == Mode::kMerges) {
      add_merge_line(value);
      return true;
    }
    if (mode_ == Mode::kMergePair) {
      add_merge_part(value);
      return true;
    }
    return scalar(json(std::move(value)));
  }
  bool binary(json::binary_t& /*value*/) { fail(where_, "binary values are not JSON"); }
  bool key(std::string& name) {
    if (mode_ == Mode::kVocabulary) {
      token_ = std::move(name);
    } else {
      if (stack_.back()->contains(name)) fail(where_, fmt::format("{} appears twice", path(name)));
      key_ = std::move(name);
    }
    return true;
  }
  bool start_object(size_t /*count*/) {
    if (at_model_key("vocab")) {
      if (raw_.has_vocabulary) fail(where_, "model.vocab appears twice");
      raw_.has_vocabulary = true;
      mode_ = Mode::kVocabulary;
      return true;
    }
    return open(json::object());
  }
  bool end_object() {
    if (mode_ == Mode::kVocabulary) {
      mode_ = Mode::kDocument;
      return true;
    }
    return close();
  }
  bool start_array(size_t /*count*/) {
    if (mode_ == Mode::kMerges) {
      mode_ = Mode::kMergePair;
      parts_ = 0;
      return true;
    }
    if (at_model_key("merges")) {
      if (raw_.has_merges) fail(where_, "model.merges appears twice");
      raw_.has_merges = true;
      mode_ = Mode::kMerges;
      return true;
    }
    return open(json::array());
  }
  bool end_array() {
    if (mode_ == Mode::kMergePair) {
      if (parts_ != 2) fail_merge("must have two parts");
      mode_ = Mode::kMerges;
      return true;
    }
    if (mode_ == Mode::kMerges) {
      mode_ = Mode::kDocument;
      return true;
    }
    return close();
  }
  bool parse_error(size_t /*position*/, const std::string& /*token*/,
                   const json::exception& error) {
    const std::string_view what = error.what();
    const size_t bracket = what.find("] ");
    fail(where_,
         fmt::format("not valid JSON: {}", bracket == what.npos ? what : what.substr(bracket + 2)));
  }

  RawTokenizer take() { return std::move(raw_); }

 private:
  enum class Mode { kDocument, kVocabulary, kMerges, kMergePair };

  bool at_model_key(std::string_view name) const {
    return mode_ == Mode::kDocument && stack_.size() == 2 && model_ != nullptr &&
           stack_.back() == model_ && key_ == name;
  }

  std::string path(const std::string& name) const {
    return !stack_.empty() && stack_.back() == model_ ? "model." + name : name;
  }

  [[noreturn]] void fail_merge(std::string_view problem) const {
    fail(where_, fmt::format("model.merges[{}] {}", raw_.merges.size(), problem));
  }

  void add_token(uint64_t id) {
    const int64_t checked = id < uint64_t{Vocabulary::kMaxId} ? static_cast<int64_t>(id) : -1;
    switch (raw_.vocabulary.add(token_, checked)) {
      case Vocabulary::Added::kOk: return;
      case Vocabulary::Added::kTokenTwice:
        fail(where_, fmt::format("model.vocab: token \"{}\" appears twice", token_));
      case Vocabulary::Added::kIdTwice:
        fail(where_, fmt::format("model.vocab: id {} belongs to \"{}\" and to \"{}\"", id,
                                 raw_.vocabulary.token(checked), token_));
      case Vocabulary::Added::kIdTooLarge:
        fail(where_, fmt::format("model.vocab: id {} of \"{}\" is too large", id, token_),
             fmt::format("ids must be below {}", Vocabulary::kMaxId));
    }
  }

  void add_merge_line(std::string_view line) {
    const size_t space = line.find(' ');
    if (space == line.npos || line.find(' ', space + 1) != line.npos) {
      fail_merge(fmt::format("must be two tokens with one space between them, not \"{}\"", line));
    }
    parts_ = 0;
    add_merge_part(line.substr(0, space));
    add_merge_part(line.substr(space + 1));
  }

  void add_merge_part(std::string_view part) {
    if (part.empty()) fail_merge("has an empty part");
    if (++parts_ > 2) fail_merge("must have two parts");
    const auto length = static_cast<uint32_t>(part.size());
    if (parts_ == 1) {
      pending_ = {static_cast<uint32_t>(raw_.merge_text.size()), length, 0};
    } else {
      pending_.right_length = length;
      raw_.merges.push_back(pending_);
    }
    raw_.merge_text.append(part);
  }

  // Puts a value into the innermost open container and returns where it now lies.
  json* place(json&& value) {
    if (++nodes_ > kMaxNodes) fail(where_, "too many values outside model.vocab and model.merges");
    if (stack_.empty()) {
      raw_.rest = std::move(value);
      return &raw_.rest;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }

  bool scalar(json&& value) {
    if (mode_ == Mode::kVocabulary) {
      fail(where_,
           fmt::format("model.vocab: the id of \"{}\" must be a whole number from 0", token_));
    }
    if (mode_ != Mode::kDocument) fail_merge("must be a string or a list of two strings");
    place(std::move(value));
    return true;
  }

  bool open(json&& container) {
    if (mode_ == Mode::kVocabulary) {
      fail(where_,
           fmt::format("model.vocab: the id of \"{}\" must be a whole number from 0", token_));
    }
    if (mode_ != Mode::kDocument) fail_merge("must be a string or a list of two strings");
    if (stack_.size() >= kMaxDepth) fail(where_, fmt::format("nested deeper than {}", kMaxDepth));
    const bool is_model = stack_.size() == 1 && stack_.back()->is_object() && key_ == "model";
    stack_.push_back(place(std::move(container)));
    if (is_model) model_ = stack_.back();
    return true;
  }

  bool close() {
    // A sibling may move in memory, so the pointer is good only while the model is open.
    if (stack_.back() == model_) model_ = nullptr;
    stack_.pop_back();
    return true;
  }

  const std::string& where_;
  RawTokenizer raw_;
  Mode mode_ = Mode::kDocument;
  std::vector<json*> stack_;  // open containers; only the innermost one grows
  const json* model_ = nullptr;
  std::string key_;
  std::string token_;
  RawMerge pending_;
  int parts_ = 0;
  int64_t nodes_ = 0;
};

}  // namespace

RawTokenizer read_raw_tokenizer(std::string_view text, const std::string& where) {
  RawTokenizerSink sink(where);
  json::sax_parse(text.begin(), text.end(), &sink);
  return sink.take();
}

}  // namespace lapidary
