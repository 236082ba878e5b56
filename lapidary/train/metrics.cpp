#include "lapidary/train/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

// Keys stay in the order in which they are added.
using Json = nlohmann::ordered_json;

}  // namespace

std::optional<ExpertLoad> expert_load(std::span<const std::vector<int64_t>> tokens) {
  ExpertLoad load;
  double layers = 0.0;
  for (const std::vector<int64_t>& counts : tokens) {
    double total = 0.0;
    for (const int64_t n : counts) total += static_cast<double>(n);
    if (total <= 0.0) continue;
    const auto experts = static_cast<double>(counts.size());
    const double mean = total / experts;
    double squares = 0.0;
    for (const int64_t n : counts) squares += std::pow(static_cast<double>(n) - mean, 2);
    const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
    const double low = static_cast<double>(*least) / mean;
    const double high = static_cast<double>(*most) / mean;
    load.utilization_min = layers > 0.0 ? std::min(load.utilization_min, low) : low;
    load.utilization_max = std::max(load.utilization_max, high);
    load.cv_mean += std::sqrt(squares / experts) / mean;
    load.dead_frac_mean +=
        static_cast<double>(std::count(counts.begin(), counts.end(), 0)) / experts;
    layers += 1.0;
  }
  if (layers <= 0.0) return std::nullopt;
  load.cv_mean /= layers;
  load.dead_frac_mean /= layers;
  return load;
}

std::string iso_timestamp(Timestamp time) {
  using std::chrono::milliseconds;
  const auto since = std::chrono::floor<milliseconds>(time).time_since_epoch();
  const auto seconds = std::chrono::floor<std::chrono::seconds>(since);
  const std::time_t whole = static_cast<std::time_t>(seconds.count());
  std::tm utc{};
  gmtime_r(&whole, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", utc.tm_year + 1900,
                     utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                     (since - seconds).count());
}

std::string to_json_line(const TrainRecord& record, Timestamp time) {
  Json json = {{"step", record.step},
               {"epoch", record.epoch},
               {"timestamp", iso_timestamp(time)},
               {"loss", record.loss},
               {"grad_norm", record.grad_norm},
               {"lr", record.lr},
               {"mem", record.mem_gib},
               {"tps", record.tps},
               {"tps_per_gpu", record.tps_per_gpu},
               {"num_tokens_per_step", record.num_tokens_per_step},
               {"num_label_tokens", record.num_label_tokens}};
  if (record.moe) {
    json["moe/cv_mean"] = record.moe->cv_mean;
    json["moe/expert_utilization_min"] = record.moe->utilization_min;
    json["moe/expert_utilization_max"] = record.moe->utilization_max;
    json["moe/dead_expert_frac_mean"] = record.moe->dead_frac_mean;
  }
  return json.dump();
}

std::string to_json_line(const ValidationRecord& record, Timestamp time) {
  const Json json = {{"step", record.step},
                     {"epoch", record.epoch},
                     {"timestamp", iso_timestamp(time)},
                     {"val_loss", record.val_loss},
                     {"lr", record.lr},
                     {"num_label_tokens", record.num_label_tokens},
                     {"mem", record.mem_gib}};
  return json.dump();
}

MetricsWriter::MetricsWriter(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail(folder, "cannot be made: " + error.message(), "choose another checkpoint_dir");
  training_ = open((std::filesystem::path(folder) / "training.jsonl").string());
  validation_ = open((std::filesystem::path(folder) / "validation.jsonl").string());
}

MetricsWriter::File MetricsWriter::open(const std::string& path) {
  // A run that was killed may have left half a line: end it, so that the next one stands alone.
  bool torn = false;
  if (std::ifstream old(path, std::ios::binary | std::ios::ate); old && old.tellg() > 0) {
    old.seekg(-1, std::ios::end);
    torn = old.get() != '\n';
  }
  File file{path, std::ofstream(path, std::ios::binary | std::ios::app)};
  if (!file.stream) fail(path, "cannot be written", "choose another checkpoint_dir");
  if (torn) file.stream << '\n';
  return file;
}

void MetricsWriter::append(File& file, const std::string& line) {
  file.stream << line << '\n' << std::flush;
  if (!file.stream) fail(file.path, "cannot be written any more", "make room on the disk");
}

void MetricsWriter::write(const TrainRecord& record) {
  append(training_, to_json_line(record, std::chrono::system_clock::now()));
}

void MetricsWriter::write(const ValidationRecord& record) {
  append(validation_, to_json_line(record, std::chrono::system_clock::now()));
}

}  // namespace lapidary
