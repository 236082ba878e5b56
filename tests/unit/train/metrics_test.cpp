#include "lapidary/train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "lapidary/core/error.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

class Metrics : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / (std::string("metrics_") + info->name());
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string read(const char* name) const {
    std::ifstream file(folder_ / name);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }

  fs::path folder_;
};

Timestamp at_ms(int64_t ms) { return Timestamp(std::chrono::milliseconds(ms)); }

TEST_F(Metrics, Timestamps) {
  EXPECT_EQ(iso_timestamp(at_ms(0)), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(iso_timestamp(at_ms(951782399042)), "2000-02-28T23:59:59.042Z");
  EXPECT_EQ(iso_timestamp(at_ms(-1)), "1969-12-31T23:59:59.999Z");
}

TEST_F(Metrics, TrainRecord) {
  const TrainRecord record = {.step = 3,
                              .epoch = 1,
                              .loss = 2.5,
                              .grad_norm = 0.5,
                              .lr = 1e-5,
                              .mem_gib = 1.25,
                              .tps = 100.0,
                              .tps_per_gpu = 50.0,
                              .num_tokens_per_step = 64,
                              .num_label_tokens = 32};
  EXPECT_EQ(to_json_line(record, at_ms(1)),
            R"({"step":3,"epoch":1,"timestamp":"1970-01-01T00:00:00.001Z","loss":2.5,)"
            R"("grad_norm":0.5,"lr":1e-05,"mem":1.25,"tps":100.0,"tps_per_gpu":50.0,)"
            R"("num_tokens_per_step":64,"num_label_tokens":32})");
}

TEST_F(Metrics, ExpertLoadFields) {
  TrainRecord record;
  record.loss = std::nan("");
  record.moe = ExpertLoad{0.1, 0.2, 0.3, 0.4};
  const auto json = nlohmann::json::parse(to_json_line(record, at_ms(0)));
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_EQ(json["moe/cv_mean"], 0.1);
  EXPECT_EQ(json["moe/expert_utilization_min"], 0.2);
  EXPECT_EQ(json["moe/expert_utilization_max"], 0.3);
  EXPECT_EQ(json["moe/dead_expert_frac_mean"], 0.4);
}

TEST_F(Metrics, ExpertLoadOfCounts) {
  // Means 2 and 4; deviations sqrt(8 / 4) and 0.
  const std::vector<std::vector<int64_t>> tokens = {{4, 2, 2, 0}, {4, 4, 4, 4}, {0, 0, 0, 0}};
  const auto load = expert_load(tokens);
  ASSERT_TRUE(load);
  EXPECT_DOUBLE_EQ(load->cv_mean, std::sqrt(2.0) / 2.0 / 2.0);
  EXPECT_DOUBLE_EQ(load->utilization_min, 0.0);
  EXPECT_DOUBLE_EQ(load->utilization_max, 2.0);
  EXPECT_DOUBLE_EQ(load->dead_frac_mean, 0.125);
  EXPECT_FALSE(expert_load({}));
  EXPECT_FALSE(expert_load(std::vector<std::vector<int64_t>>{{0, 0}, {}}));
}

TEST_F(Metrics, EveryRecordIsOnDiskAtOnce) {
  MetricsWriter writer((folder_ / "deep").string());
  writer.write(TrainRecord{.step = 0});
  writer.write(TrainRecord{.step = 1});
  writer.write(ValidationRecord{.step = 1, .val_loss = 3.0});
  const std::string training = read("deep/training.jsonl");
  EXPECT_EQ(std::count(training.begin(), training.end(), '\n'), 2);
  const auto json = nlohmann::json::parse(read("deep/validation.jsonl"));
  EXPECT_EQ(json["val_loss"], 3.0);
  EXPECT_EQ(json["step"], 1);
  const std::string stamp = json["timestamp"];
  EXPECT_TRUE(std::regex_match(stamp, std::regex(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)")))
      << stamp;
}

TEST_F(Metrics, AppendsAndEndsATornLine) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / "training.jsonl") << "{\"step\":0}\n{\"st";
  MetricsWriter(folder_.string()).write(TrainRecord{.step = 5});
  EXPECT_THAT(read("training.jsonl"), testing::StartsWith("{\"step\":0}\n{\"st\n{\"step\":5,"));
}

TEST_F(Metrics, SaysWhenItCannotWrite) {
  fs::create_directories(folder_ / "training.jsonl");
  EXPECT_THROW(MetricsWriter(folder_.string()), Error);
  std::ofstream(folder_ / "file") << "x";
  EXPECT_THROW(MetricsWriter((folder_ / "file").string()), Error);
}

}  // namespace
}  // namespace lapidary
