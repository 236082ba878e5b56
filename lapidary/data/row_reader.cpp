#include "lapidary/data/row_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"
#include "lapidary/data/utf8.h"

namespace lapidary {
namespace {

using nlohmann::json;

constexpr int64_t kMaxPosition = int64_t{1} << 31;

json parse_row(std::string_view line, const std::string& where) {
  json row;
  try {
    row = json::parse(line);
  } catch (const json::exception& error) {
    const std::string_view what = error.what();
    const size_t bracket = what.find("] ");
    fail(where,
         fmt::format("not valid JSON: {}", bracket == what.npos ? what : what.substr(bracket + 2)));
  }
  if (!row.is_object()) fail(where, "the row must be an object");
  return row;
}

RowKind kind_of(const json& row, RowKind wanted, const std::string& where) {
  const std::pair<RowKind, const char*> kinds[] = {
      {RowKind::kChat, "messages"}, {RowKind::kTokens, "input_ids"}, {RowKind::kText, "text"}};
  for (const auto& [kind, key] : kinds) {
    if ((wanted == kind || wanted == RowKind::kAuto) && row.contains(key)) return kind;
    if (wanted == kind) fail(where, fmt::format("\"{}\" is missing", key));
  }
  fail(where, "the row has none of \"messages\", \"input_ids\", \"text\"");
}

// The text of a message's content: a string, or a list of text parts (which are trimmed).
std::string content_text(const json& content, const std::string& path, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) fail(where, path + " must be a string or a list of parts");
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const json& part = content[i];
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                         part.contains("text") && part["text"].is_string();
    if (!is_text) {
      fail(where, fmt::format("{}[{}] is not a text part", path, i),
           "only {\"type\": \"text\", \"text\": ...} can be read here");
    }
    text += trim(part["text"].get_ref<const std::string&>());
  }
  return text;
}

std::vector<ChatMessage> read_messages(const json& row, const std::string& where) {
  const json& list = row["messages"];
  if (!list.is_array() || list.empty()) fail(where, "\"messages\" must be a list that isn't empty");
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string path = fmt::format("messages[{}]", i);
    const json& item = list[i];
    if (!item.is_object() || !item.contains("role") || !item["role"].is_string()) {
      fail(where, path + " must be an object with a role");
    }
    if (!item.contains("content")) fail(where, path + ".content is missing");
    for (const char* key : {"tool_calls", "tool_responses"}) {
      if (item.contains(key) && !item[key].is_null()) {
        fail(where, fmt::format("{}.{} is not supported", path, key));
      }
    }
    messages.push_back(
        {item["role"].get<std::string>(), content_text(item["content"], path + ".content", where)});
  }
  return messages;
}

// A list of whole numbers in [low, high), and perhaps `extra`.
std::vector<int64_t> read_numbers(const json& row, const char* key, int64_t low, int64_t high,
                                  std::optional<int64_t> extra, const std::string& where) {
  const auto it = row.find(key);
  if (it == row.end()) fail(where, fmt::format("\"{}\" is missing", key));
  if (!it->is_array()) fail(where, fmt::format("\"{}\" must be a list of numbers", key));
  std::vector<int64_t> numbers;
  numbers.reserve(it->size());
  for (const json& item : *it) {
    const bool whole = item.is_number_integer();
    const bool huge = item.is_number_unsigned() && item.get<uint64_t>() > uint64_t{INT64_MAX};
    const int64_t value = whole && !huge ? item.get<int64_t>() : low - 1;
    const bool fine = whole && !huge && ((value >= low && value < high) || extra == value);
    if (!fine) {
      fail(where, fmt::format("{}[{}] is {}, outside {} to {}", key, numbers.size(),
                              item.is_primitive() ? item.dump() : "no number", low, high - 1));
    }
    numbers.push_back(value);
  }
  return numbers;
}

void check_length(const std::vector<int64_t>& list, const char* key, size_t size,
                  const std::string& where) {
  if (list.size() == size) return;
  fail(where, fmt::format("\"{}\" has {} entries, \"input_ids\" {}", key, list.size(), size));
}

// Cuts the padding that attention_mask marks at both ends.
void cut_padding(Sample& sample, const std::vector<int64_t>& mask, const std::string& where) {
  const auto first = std::find(mask.begin(), mask.end(), 1);
  const auto last = std::find(mask.rbegin(), mask.rend(), 1).base();
  if (first < last && std::find(first, last, 0) != last) {
    fail(where, "attention_mask has a 0 between ones", "only padding at the ends can be masked");
  }
  const auto begin = first - mask.begin();
  const auto end = first < last ? last - mask.begin() : begin;
  for (std::vector<int64_t>* list : {&sample.input_ids, &sample.labels, &sample.position_ids}) {
    if (list->empty()) continue;
    *list = std::vector<int64_t>(list->begin() + begin, list->begin() + end);
  }
}

Sample read_tokens(const json& row, int64_t vocab_size, const std::string& where) {
  const int64_t limit = vocab_size > 0 ? vocab_size : kMaxPosition;
  Sample sample;
  sample.input_ids = read_numbers(row, "input_ids", 0, limit, std::nullopt, where);
  const size_t size = sample.input_ids.size();
  sample.labels = read_numbers(row, "labels", 0, limit, kIgnoreLabel, where);
  check_length(sample.labels, "labels", size, where);
  if (row.contains("position_ids")) {
    sample.position_ids = read_numbers(row, "position_ids", 0, kMaxPosition, std::nullopt, where);
    check_length(sample.position_ids, "position_ids", size, where);
  }
  if (row.contains("attention_mask")) {
    const auto mask = read_numbers(row, "attention_mask", 0, 2, std::nullopt, where);
    check_length(mask, "attention_mask", size, where);
    cut_padding(sample, mask, where);
  }
  return sample;
}

void check_vocabulary(const Sample& sample, int64_t vocab_size, const std::string& where) {
  for (const int64_t id : sample.input_ids) {
    if (vocab_size > 0 && id >= vocab_size) {
      fail(where,
           fmt::format("the token id {} is outside the model's vocabulary of {}", id, vocab_size),
           "use the model's own tokenizer");
    }
  }
}

}  // namespace

Sample RowReader::read(std::string_view line, const std::string& where) {
  const json row = parse_row(line, where);
  const RowKind kind = kind_of(row, options_.kind, where);
  const int64_t vocab_size = options_.vocab_size > 0 ? options_.vocab_size
                             : tokenizer_ != nullptr ? tokenizer_->vocab_size()
                                                     : 0;
  if (kind == RowKind::kTokens) return read_tokens(row, vocab_size, where);
  if (tokenizer_ == nullptr) fail(where, "the row needs a tokenizer", "give the model's folder");

  Sample sample;
  if (kind == RowKind::kChat) {
    if (!chat_) chat_ = gemma4_chat_format(*tokenizer_);
    const std::vector<ChatMessage> messages = read_messages(row, where);
    try {
      ChatTokens tokens = chat_(messages);
      sample.input_ids = std::move(tokens.input_ids);
      sample.labels = std::move(tokens.labels);
    } catch (const Error& error) {
      fail(where, error.what());
    }
  } else {
    if (!row["text"].is_string()) fail(where, "\"text\" must be a string");
    sample.input_ids = tokenizer_->encode(row["text"].get_ref<const std::string&>(), true);
    if (options_.append_eos) {
      const std::optional<int64_t> eos = tokenizer_->id_of("<eos>");
      if (!eos) fail(where, "the tokenizer has no <eos>", "set append_eos to false");
      sample.input_ids.push_back(*eos);
    }
    sample.labels = sample.input_ids;
  }
  check_vocabulary(sample, vocab_size, where);
  return sample;
}

}  // namespace lapidary
