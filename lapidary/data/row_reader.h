#pragma once

#include <string>
#include <string_view>

#include "lapidary/data/dataset.h"

namespace lapidary {

// Turns one line of a data set into a sample.
class RowReader {
 public:
  RowReader(const DatasetOptions& options, const Tokenizer* tokenizer, ChatFormat chat)
      : options_(options), tokenizer_(tokenizer), chat_(std::move(chat)) {}

  // `where` ("file:line") begins every error.
  Sample read(std::string_view line, const std::string& where);

 private:
  const DatasetOptions& options_;
  const Tokenizer* tokenizer_;
  ChatFormat chat_;
};

}  // namespace lapidary
