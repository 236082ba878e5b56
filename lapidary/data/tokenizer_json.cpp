#include "lapidary/data/tokenizer_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"
#include "lapidary/data/tokenizer_sax.h"

namespace lapidary {
namespace {

using nlohmann::json;

constexpr size_t kMaxFileBytes = size_t{256} << 20U;
constexpr size_t kMaxReplacementBytes = 32;
constexpr size_t kMaxReplacements = 4;

// Typed access to the fields of one object, with its path in every message.
class Fields {
 public:
  Fields(const json& object, std::string path, const std::string& where)
      : object_(object), path_(std::move(path)), where_(where) {
    if (!object.is_object()) fail(where_, fmt::format("{} must be an object", path_));
  }

  const std::string& where() const { return where_; }
  std::string path(std::string_view name) const { return fmt::format("{}.{}", path_, name); }

  // Null when absent or null.
  const json* find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  const std::string& text(const char* name) const {
    const json* value = find(name);
    if (value == nullptr || !value->is_string()) refuse(name, "must be a string");
    return value->get_ref<const std::string&>();
  }
  bool flag(const char* name, bool fallback) const {
    const json* value = find(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) refuse(name, "must be true or false");
    return value->get<bool>();
  }
  const json& list(const char* name) const {
    const json* value = find(name);
    if (value == nullptr || !value->is_array()) refuse(name, "must be a list");
    return *value;
  }
  [[noreturn]] void refuse(const char* name, std::string_view problem) const {
    fail(where_, fmt::format("{} {}", path(name), problem));
  }
  [[noreturn]] void unsupported(const char* name) const {
    const json* value = find(name);
    refuse(name,
           fmt::format("{} is not supported",
                       value != nullptr && value->is_primitive() ? value->dump() : "as given"));
  }

 private:
  const json& object_;
  std::string path_;
  const std::string& where_;
};

std::vector<Fields> sequence_of(const json& value, const std::string& path, const char* list_name,
                                const std::string& where) {
  const Fields fields(value, path, where);
  if (fields.text("type") != "Sequence") return {fields};
  std::vector<Fields> parts;
  const json& list = fields.list(list_name);
  for (size_t i = 0; i < list.size(); ++i) {
    parts.emplace_back(list[i], fmt::format("{}.{}[{}]", path, list_name, i), where);
  }
  return parts;
}

std::string pattern_string(const Fields& fields) {
  const json* pattern = fields.find("pattern");
  if (pattern == nullptr) fields.refuse("pattern", "is missing");
  const Fields inner(*pattern, fields.path("pattern"), fields.where());
  if (inner.find("String") == nullptr) {
    fields.refuse("pattern", "must be a String; regular expressions are not supported");
  }
  if (inner.text("String").empty()) fields.refuse("pattern", "is empty");
  return inner.text("String");
}

// Bounds how much a hostile file can make a text grow.
void add_replacement(const Fields& fields, std::vector<Replacement>& list) {
  Replacement replacement{pattern_string(fields), fields.text("content")};
  if (replacement.to.size() > kMaxReplacementBytes) fields.refuse("content", "is too long");
  if (list.size() >= kMaxReplacements) fields.refuse("type", "is one Replace too many");
  list.push_back(std::move(replacement));
}

void read_normalizer(const json& root, const std::string& where, TokenizerSpec& spec) {
  const auto it = root.find("normalizer");
  if (it == root.end() || it->is_null()) return;
  for (const Fields& part : sequence_of(*it, "normalizer", "normalizers", where)) {
    if (part.text("type") != "Replace") part.unsupported("type");
    add_replacement(part, spec.normalizer);
  }
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

// A Split is accepted only where the normaliser leaves nothing for it to split at.
void check_pre_tokenizer(const json& root, const std::string& where, const TokenizerSpec& spec) {
  const auto it = root.find("pre_tokenizer");
  if (it == root.end() || it->is_null()) return;
  const Fields fields(*it, "pre_tokenizer", where);
  if (fields.text("type") != "Split") fields.unsupported("type");
  if (fields.flag("invert", false)) fields.unsupported("invert");
  const std::string pattern = pattern_string(fields);
  const bool never_matches = spec.normalizer.size() == 1 && spec.normalizer[0].from == pattern &&
                             pattern.size() == 1 && !contains(spec.normalizer[0].to, pattern);
  if (!never_matches) {
    fields.refuse("pattern", "splits text that the normalizer leaves, which is not supported");
  }
}

void read_decoder(const json& root, const std::string& where, TokenizerSpec& spec) {
  const auto it = root.find("decoder");
  if (it == root.end() || it->is_null()) fail(where, "decoder is missing");
  bool fused = false;
  for (const Fields& part : sequence_of(*it, "decoder", "decoders", where)) {
    const std::string& type = part.text("type");
    if (type == "Replace" && !spec.decode_bytes && !fused) {
      add_replacement(part, spec.decoder);
    } else if (type == "ByteFallback" && !spec.decode_bytes && !fused) {
      spec.decode_bytes = true;
    } else if (type == "Fuse" && !fused) {
      fused = true;
    } else {
      part.unsupported("type");
    }
  }
}

void append_template_ids(const Fields& post, const json& special, std::vector<int64_t>& ids,
                         const TokenizerSpec& spec) {
  const Fields item(special, post.path("single[].SpecialToken"), post.where());
  const std::string& name = item.text("id");
  const json* table = post.find("special_tokens");
  if (table == nullptr || !table->is_object() || !table->contains(name)) {
    post.refuse("special_tokens", fmt::format("lacks \"{}\"", name));
  }
  const Fields entry((*table)[name], post.path("special_tokens." + name), post.where());
  for (const json& id : entry.list("ids")) {
    if (!id.is_number_integer() || !spec.vocabulary.has(id.get<int64_t>())) {
      entry.refuse("ids", "must be ids of the vocabulary");
    }
    ids.push_back(id.get<int64_t>());
  }
}

void read_post_processor(const json& root, const std::string& where, TokenizerSpec& spec) {
  const auto it = root.find("post_processor");
  if (it == root.end() || it->is_null()) return;
  const Fields post(*it, "post_processor", where);
  if (post.text("type") != "TemplateProcessing") post.unsupported("type");
  bool seen_text = false;
  for (const json& item : post.list("single")) {
    if (item.is_object() && item.contains("Sequence") && !seen_text) {
      seen_text = true;
    } else if (item.is_object() && item.contains("SpecialToken")) {
      append_template_ids(post, item["SpecialToken"], seen_text ? spec.suffix : spec.prefix, spec);
    } else {
      post.refuse("single", "must hold special tokens and one Sequence");
    }
  }
  if (!seen_text) post.refuse("single", "has no Sequence");
}

int64_t token_id(const Fields& fields) {
  const json* id = fields.find("id");
  if (id == nullptr || !id->is_number_unsigned() ||
      id->get<uint64_t>() >= uint64_t{Vocabulary::kMaxId}) {
    fields.refuse("id", fmt::format("must be a whole number from 0 to {}", Vocabulary::kMaxId - 1));
  }
  return id->get<int64_t>();
}

// An added token keeps the id that the model's vocabulary gives its text; else it brings its own.
void add_token(const Fields& fields, TokenizerSpec& spec) {
  AddedToken token{fields.text("content"), token_id(fields), fields.flag("special", false),
                   fields.flag("normalized", true)};
  for (const char* name : {"single_word", "lstrip", "rstrip"}) {
    if (fields.flag(name, false)) fields.unsupported(name);
  }
  if (token.content.empty()) fields.refuse("content", "is empty");
  const std::optional<uint32_t> known = spec.vocabulary.find(token.content);
  if (known && int64_t{*known} != token.id) {
    fields.refuse(
        "id", fmt::format("is {}, but \"{}\" already has id {}", token.id, token.content, *known));
  }
  if (!known && spec.vocabulary.add(token.content, token.id) != Vocabulary::Added::kOk) {
    fields.refuse("id", fmt::format("{} of \"{}\" already belongs to \"{}\"", token.id,
                                    token.content, spec.vocabulary.token(token.id)));
  }
  spec.added.push_back(std::move(token));
}

void read_added_tokens(const json& root, const std::string& where, TokenizerSpec& spec) {
  const auto it = root.find("added_tokens");
  if (it == root.end() || it->is_null()) return;
  if (!it->is_array()) fail(where, "added_tokens must be a list");
  Vocabulary seen;
  for (size_t i = 0; i < it->size(); ++i) {
    const Fields fields((*it)[i], fmt::format("added_tokens[{}]", i), where);
    add_token(fields, spec);
    if (seen.add(spec.added.back().content, spec.added.back().id) != Vocabulary::Added::kOk) {
      fields.refuse("content", "or id appears twice");
    }
  }
}

void read_model_settings(const Fields& model, TokenizerSpec& spec) {
  if (model.text("type") != "BPE") model.unsupported("type");
  const json* dropout = model.find("dropout");
  if (dropout != nullptr && *dropout != 0) model.unsupported("dropout");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.find(name) != nullptr && !model.text(name).empty()) model.unsupported(name);
  }
  if (model.flag("ignore_merges", false)) model.unsupported("ignore_merges");
  spec.fuse_unk = model.flag("fuse_unk", false);
  spec.byte_fallback = model.flag("byte_fallback", false);
  if (model.find("unk_token") != nullptr) {
    spec.unk = spec.vocabulary.find(model.text("unk_token"));
    if (!spec.unk) model.refuse("unk_token", "is not in model.vocab");
  }
}

void resolve_merges(const RawTokenizer& raw, const std::string& where, TokenizerSpec& spec) {
  const std::string_view text = raw.merge_text;
  const auto id_of = [&](std::string_view token, std::string_view role) {
    const std::optional<uint32_t> id = spec.vocabulary.find(token);
    if (!id) {
      fail(where, fmt::format("model.merges[{}]: the {} \"{}\" is not in model.vocab",
                              spec.merges.size(), role, token));
    }
    return *id;
  };
  spec.merges.reserve(raw.merges.size());
  for (const RawMerge& merge : raw.merges) {
    const size_t right = size_t{merge.offset} + merge.left_length;
    const uint32_t left_id = id_of(text.substr(merge.offset, merge.left_length), "left part");
    const uint32_t right_id = id_of(text.substr(right, merge.right_length), "right part");
    const uint32_t result =
        id_of(text.substr(merge.offset, size_t{merge.left_length} + merge.right_length), "result");
    spec.merges.push_back({left_id, right_id, result});
  }
}

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view text, const std::string& where) {
  if (text.size() > kMaxFileBytes) {
    fail(where, fmt::format("larger than {} bytes, so not a tokenizer.json", kMaxFileBytes));
  }
  RawTokenizer raw = read_raw_tokenizer(text, where);
  const json& root = raw.rest;
  if (!root.is_object()) fail(where, "must be an object");
  if (!root.contains("model")) fail(where, "model is missing");
  const Fields model(root["model"], "model", where);
  if (model.find("vocab") != nullptr) model.refuse("vocab", "must be an object");
  if (model.find("merges") != nullptr) model.refuse("merges", "must be a list");
  if (!raw.has_vocabulary || raw.vocabulary.count() == 0)
    model.refuse("vocab", "is missing or empty");
  if (!raw.has_merges) model.refuse("merges", "is missing");

  TokenizerSpec spec;
  spec.vocabulary = std::move(raw.vocabulary);
  read_model_settings(model, spec);
  resolve_merges(raw, where, spec);
  read_added_tokens(root, where, spec);
  read_normalizer(root, where, spec);
  check_pre_tokenizer(root, where, spec);
  read_decoder(root, where, spec);
  read_post_processor(root, where, spec);
  return spec;
}

}  // namespace lapidary
