#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lapidary/data/vocabulary.h"

namespace lapidary {

struct AddedToken {
  std::string content;
  int64_t id = 0;
  bool special = false;
  bool normalized = false;  // matched after normalisation, else on the raw text
};

struct Replacement {
  std::string from;
  std::string to;
};

// Two adjacent tokens become one; the position in the list is the rank, lower goes first.
struct Merge {
  uint32_t left = 0;
  uint32_t right = 0;
  uint32_t result = 0;
};

// What a tokenizer.json says, checked: every id named here exists in `vocabulary`.
struct TokenizerSpec {
  Vocabulary vocabulary;  // the model's tokens and the added ones
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  std::optional<uint32_t> unk;
  bool fuse_unk = false;
  bool byte_fallback = false;           // of the model
  std::vector<Replacement> normalizer;  // in order
  std::vector<Replacement> decoder;     // in order, on each token
  bool decode_bytes = false;            // the decoder has ByteFallback
  std::vector<int64_t> prefix;          // added before and after a text on request
  std::vector<int64_t> suffix;
};

// Reads the text of a tokenizer.json. `where` names the file in errors. Anything that the engine
// does not do exactly as Hugging Face tokenizers does is one Error that names the field.
// `truncation` and `padding` are ignored: they are settings of a call, not of the vocabulary.
TokenizerSpec parse_tokenizer_json(std::string_view text, const std::string& where);

}  // namespace lapidary
