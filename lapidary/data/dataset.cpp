#include "lapidary/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "lapidary/core/error.h"
#include "lapidary/data/row_reader.h"
#include "lapidary/data/split.h"

namespace lapidary {
namespace {

int64_t count_rows(const DatasetOptions& options) {
  JsonlReader reader(options.path, options.max_line_bytes);
  int64_t rows = 0;
  while (reader.next()) ++rows;
  return rows;
}

Split::Range rows_of(const DatasetOptions& options) {
  const Split split = parse_split(options.split);
  const int64_t total =
      split.needs_total() ? count_rows(options) : std::numeric_limits<int64_t>::max();
  Split::Range range = split.resolve(total);
  if (options.limit_dataset_samples) {
    const int64_t limit = *options.limit_dataset_samples;
    if (limit <= 0) fail("limit_dataset_samples", fmt::format("{} is not above 0", limit));
    if (range.end - range.begin > limit) range.end = range.begin + limit;
  }
  return range;
}

// Whether the sample stays.
bool fit_length(Sample& sample, const DatasetOptions& options, const std::string& where,
                DatasetReport& report) {
  const auto length = static_cast<int64_t>(sample.input_ids.size());
  if (options.max_length <= 0 || length <= options.max_length) return true;
  if (options.overlong == Overlong::kError) {
    fail(where, fmt::format("{} tokens, but max_length is {}", length, options.max_length),
         "raise max_length, or let long samples be truncated or dropped");
  }
  if (options.overlong == Overlong::kDrop) {
    ++report.dropped;
    return false;
  }
  ++report.truncated;
  const auto limit = static_cast<size_t>(options.max_length);
  sample.input_ids.resize(limit);
  sample.labels.resize(limit);
  if (!sample.position_ids.empty()) sample.position_ids.resize(limit);
  return true;
}

}  // namespace

Dataset load_dataset(const DatasetOptions& options, const Tokenizer* tokenizer, ChatFormat chat) {
  const Split::Range range = rows_of(options);
  JsonlReader lines(options.path, options.max_line_bytes);
  RowReader rows(options, tokenizer, std::move(chat));
  Dataset dataset;
  DatasetReport& report = dataset.report;
  for (int64_t row = 0; row < range.end && lines.next(); ++row) {
    if (row < range.begin) continue;
    const std::string where = lines.where();
    Sample sample = rows.read(lines.line(), where);
    ++report.rows;
    if (sample.input_ids.empty()) fail(where, "the row has no tokens");
    if (!fit_length(sample, options, where, report)) continue;
    report.tokens += static_cast<int64_t>(sample.input_ids.size());
    if (count_targets(sample) == 0) ++report.without_targets;
    dataset.samples.push_back(std::move(sample));
  }
  if (dataset.samples.empty()) {
    fail(options.path, report.dropped > 0
                           ? fmt::format("all {} samples are longer than max_length {}",
                                         report.dropped, options.max_length)
                           : fmt::format("split {} has no rows", options.split));
  }
  return dataset;
}

}  // namespace lapidary
