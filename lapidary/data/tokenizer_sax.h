#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lapidary/data/vocabulary.h"

namespace lapidary {

// A merge as it stands in the file: `left` and `right` lie next to each other in merge_text.
struct RawMerge {
  uint32_t offset = 0;
  uint32_t left_length = 0;
  uint32_t right_length = 0;
};

// A tokenizer.json with its two large parts, model.vocab and model.merges, in compact form; the
// rest is an ordinary document.
struct RawTokenizer {
  nlohmann::json rest;
  Vocabulary vocabulary;
  std::string merge_text;
  std::vector<RawMerge> merges;
  bool has_vocabulary = false;
  bool has_merges = false;
};

// Builds a RawTokenizer from parser events; nesting and the size of `rest` are bounded.
RawTokenizer read_raw_tokenizer(std::string_view text, const std::string& where);

}  // namespace lapidary
