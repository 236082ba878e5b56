#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lapidary/data/chat_format.h"
#include "lapidary/data/jsonl.h"
#include "lapidary/data/sample.h"
#include "lapidary/data/tokenizer.h"

namespace lapidary {

// What a row of the file is:
//   kChat    {"messages": [{"role": ..., "content": text or [{"type": "text", "text": ...}]}]}
//   kTokens  {"input_ids": [...], "labels": [...], "attention_mask"?: [...], "position_ids"?:
//   [...]}
//            labels aligned with input_ids, -100 = no target; padding (mask 0) at the ends is cut
//   kText    {"text": ...}: every token is a target; the tokenizer's template (bos) is applied
//   kAuto    whichever of `messages`, `input_ids`, `text` the row has
enum class RowKind { kAuto, kChat, kTokens, kText };

struct DatasetOptions {
  std::string path;  // a JSON-lines file
  std::string split = "train";
  RowKind kind = RowKind::kAuto;
  std::optional<int64_t> limit_dataset_samples;  // at most so many rows of the split
  int64_t max_length = 0;                        // tokens of a sample; 0 = no limit
  Overlong overlong = Overlong::kError;
  bool append_eos = false;  // text rows: <eos> at the end
  int64_t vocab_size = 0;   // ids must be below; 0 = the tokenizer's size, or unchecked without one
  int64_t max_line_bytes = JsonlReader::kDefaultMaxLineBytes;
};

struct DatasetReport {
  int64_t rows = 0;  // read: samples + dropped
  int64_t dropped = 0;
  int64_t truncated = 0;
  int64_t without_targets = 0;  // samples that are kept but teach nothing
  int64_t tokens = 0;
};

struct Dataset {
  std::vector<Sample> samples;
  DatasetReport report;
};

// Reads the rows of the split into samples. The tokenizer may be null when all rows are kTokens;
// `chat` may be empty: gemma4_chat_format is used then. Throws Error with file:line for a row that
// is malformed, names ids outside the vocabulary, is too long (Overlong::kError) or has no tokens,
// and when no sample is left.
Dataset load_dataset(const DatasetOptions& options, const Tokenizer* tokenizer,
                     ChatFormat chat = nullptr);

}  // namespace lapidary
