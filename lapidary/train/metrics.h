#pragma once

#include <chrono>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lapidary {

// How evenly tokens were spread over experts in one step.
struct ExpertLoad {
  double cv_mean = 0.0;          // standard deviation over mean, averaged over layers
  double utilization_min = 0.0;  // fewest tokens of an expert over the layer's mean, any layer
  double utilization_max = 0.0;  // most tokens of an expert over the layer's mean, any layer
  double dead_frac_mean = 0.0;   // experts without a token over all, averaged over layers
};

// tokens[layer][expert]: tokens that the layer sent to the expert. Layers without tokens don't
// count; nullopt when none is left.
std::optional<ExpertLoad> expert_load(std::span<const std::vector<int64_t>> tokens);

// One optimiser step, under NeMo's names.
struct TrainRecord {
  int64_t step = 0;        // from 0
  int64_t epoch = 0;       // from 0
  double loss = 0.0;       // mean over label tokens
  double grad_norm = 0.0;  // before clipping
  double lr = 0.0;         // after the step: what the next one uses
  double mem_gib = 0.0;    // peak
  double tps = 0.0;        // tokens a second, all ranks
  double tps_per_gpu = 0.0;
  int64_t num_tokens_per_step = 0;  // without the tail of each row that has no labels
  int64_t num_label_tokens = 0;
  std::optional<ExpertLoad> moe = {};
};

struct ValidationRecord {
  int64_t step = 0;
  int64_t epoch = 0;
  double val_loss = 0.0;  // mean over label tokens
  double lr = 0.0;
  int64_t num_label_tokens = 0;
  double mem_gib = 0.0;
};

using Timestamp = std::chrono::system_clock::time_point;

// "2026-01-31T23:59:59.042Z"
std::string iso_timestamp(Timestamp time);

// One line of JSON, without its newline. Numbers that are not finite become null.
std::string to_json_line(const TrainRecord& record, Timestamp time);
std::string to_json_line(const ValidationRecord& record, Timestamp time);

// Appends to FOLDER/training.jsonl and FOLDER/validation.jsonl, flushed with every record, so that
// a crash loses nothing. Makes the folder. Throws Error when the disk does not take a record.
class MetricsWriter {
 public:
  explicit MetricsWriter(const std::string& folder);
  void write(const TrainRecord& record);
  void write(const ValidationRecord& record);

 private:
  struct File {
    std::string path;
    std::ofstream stream;
  };
  static File open(const std::string& path);
  static void append(File& file, const std::string& line);
  File training_;
  File validation_;
};

}  // namespace lapidary
