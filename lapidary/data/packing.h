#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lapidary/data/sample.h"

namespace lapidary {

struct PackOptions {
  int64_t length = 0;     // tokens of a row
  int64_t window = 4096;  // documents that are packed together, after shuffling; 0 = all of them
  uint64_t seed = 0;
  bool shuffle = true;
  Overlong overlong = Overlong::kError;  // documents longer than a row
  int64_t pad_id = 0;
};

struct PackReport {
  int64_t documents = 0;  // given: packed + dropped
  int64_t dropped = 0;
  int64_t truncated = 0;
  int64_t rows = 0;
  int64_t tokens = 0;   // in the rows
  int64_t padding = 0;  // rows * length - tokens
};

struct Packed {
  std::vector<Sample> rows;
  PackReport report;
};

// Packs documents into rows of exactly options.length tokens: best fit decreasing within a window
// of the shuffled documents; the result depends on the documents and the options alone. Every
// document is in exactly one row or counted as dropped. In a row:
//   packed_seq_ids  1, 2, ... per document, 0 = padding (at the end)
//   position_ids    start at 0 in every document (or are the document's own); 0 in padding
//   labels          the first of every document is kIgnoreLabel, so that no document's last token
//                   is taught to predict the next document; kIgnoreLabel in padding
// Throws Error for an empty or already packed document and for one longer than a row
// (Overlong::kError).
Packed pack_samples(std::span<const Sample> documents, const PackOptions& options);

}  // namespace lapidary
