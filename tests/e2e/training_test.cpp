#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <regex>

#include "tests/e2e/program.h"
#include "tests/support/tensors.h"

namespace lapidary::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(Training, LogsEveryStepUnderTheNamesOfNemo) {
  const Workspace work;
  const ProcessResult run = work.train();
  expect_success(run);
  EXPECT_EQ(run.err, "");
  const auto steps = work.training_log();
  ASSERT_EQ(steps.size(), 6U);  // 12 samples, 4 a step, 2 epochs
  const std::regex timestamp(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)");
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto& row = steps[i];
    EXPECT_EQ(row.at("step"), i);
    EXPECT_EQ(row.at("epoch"), i / 3);
    EXPECT_TRUE(std::regex_match(row.at("timestamp").get<std::string>(), timestamp));
    for (const char* name :
         {"loss", "grad_norm", "lr", "mem", "tps", "tps_per_gpu", "num_tokens_per_step",
          "num_label_tokens", "moe/cv_mean", "moe/expert_utilization_max"}) {
      EXPECT_GT(row.at(name).get<double>(), 0.0) << name;
    }
    // 4 experts, 2 of them for each token.
    EXPECT_LE(row.at("moe/expert_utilization_min").get<double>(), 1.0);
    EXPECT_GE(row.at("moe/expert_utilization_max").get<double>(), 1.0);
    EXPECT_LE(row.at("moe/expert_utilization_max").get<double>(), 2.0);
    EXPECT_GE(row.at("moe/dead_expert_frac_mean").get<double>(), 0.0);
  }
  EXPECT_LT(steps.back().at("loss"), steps.front().at("loss"));

  const auto validation = read_jsonl(work.path("run/validation.jsonl"));
  ASSERT_EQ(validation.size(), 4U);  // before the first step, then every second one
  for (const auto& row : validation) {
    for (const char* name : {"step", "epoch", "timestamp", "val_loss", "lr", "num_label_tokens"}) {
      EXPECT_TRUE(row.contains(name)) << name;
    }
    EXPECT_EQ(row.at("num_label_tokens"), validation.front().at("num_label_tokens"));
  }
  EXPECT_EQ(column(validation, "step"), (std::vector<double>{0, 1, 3, 5}));
  EXPECT_LT(validation.back().at("val_loss"), validation.front().at("val_loss"));
}

TEST(Training, LaysCheckpointsOutAsNemoDoes) {
  const Workspace work;
  expect_success(work.train());
  for (const char* name : {"run/epoch_1_step_3", "run/epoch_1_step_5"}) {
    for (const char* file :
         {"config.yaml", "losses.json", "model/consolidated/config.json",
          "model/consolidated/model.safetensors", "model/consolidated/tokenizer.json"}) {
      EXPECT_TRUE(fs::is_regular_file(work.path(name) / file)) << name << "/" << file;
    }
  }
  EXPECT_EQ(fs::read_symlink(work.path("run/LATEST")), "epoch_1_step_5");
  const auto losses = nlohmann::json::parse(read_file(work.path("run/LATEST/losses.json")));
  EXPECT_EQ(losses.at("train_loss"), work.training_log().back().at("loss"));
  EXPECT_EQ(losses.at("default"),
            read_jsonl(work.path("run/validation.jsonl")).back().at("val_loss"));
  EXPECT_EQ(read_file(work.path("run/LATEST/model/consolidated/tokenizer.json")),
            read_file(work.path("tokenizer.json")));
  // The recipe in the checkpoint is whole: the same run again.
  const ProcessResult again =
      work.run({"train", "run/LATEST/config.yaml", "--checkpoint.checkpoint_dir=again"});
  expect_success(again);
  EXPECT_EQ(column(work.training_log("again"), "loss"), column(work.training_log(), "loss"));
}

// Fields that turn the tiny recipe into one that goes on from a checkpoint.
std::string continuing_recipe(const Workspace& work, const std::string& model) {
  const std::string text = read_file(work.path("tiny.yaml"));
  const size_t begin = text.find("model:\n"), end = text.find("dataset:\n");
  return text.substr(0, begin) + "model:\n  pretrained_model_name_or_path: " + model + "\n" +
         text.substr(end);
}

TEST(Training, GoesOnFromItsOwnCheckpoint) {
  const Workspace work;
  expect_success(work.train());
  fs::rename(work.path("run"), work.path("first"));
  work.write("more.yaml", continuing_recipe(work, "first/LATEST/model/consolidated"));
  const ProcessResult more = work.run({"train", "more.yaml"});
  expect_success(more);
  const auto before = read_jsonl(work.path("first/validation.jsonl"));
  const auto after = read_jsonl(work.path("run/validation.jsonl"));
  // Saving and loading is exact: the evaluation before the first step is the last one before.
  EXPECT_EQ(after.front().at("val_loss"), before.back().at("val_loss"));
  EXPECT_LT(after.back().at("val_loss"), before.back().at("val_loss"));
}

TEST(Training, ExportsInTheTypeOfTheWeights) {
  const Workspace work;
  const std::pair<const char*, FileDtype> types[] = {{"float32", FileDtype::f32},
                                                     {"bfloat16", FileDtype::bf16}};
  for (const auto& [name, dtype] : types) {
    expect_success(work.train({std::string("--model.torch_dtype=") + name}));
    const SafetensorsReader reader(work.text_path(kLatestModel) + "/model.safetensors");
    for (const TensorEntry& entry : reader.entries()) EXPECT_EQ(entry.dtype, dtype) << entry.name;
    const std::string config = read_file(work.path(kLatestModel) / "config.json");
    EXPECT_THAT(config, HasSubstr(name));
    expect_success(work.run(
        {"generate", kLatestModel, "--input-ids", "2,5", "--print-ids", "--max-new-tokens", "2"}));
    const auto losses = column(work.training_log(), "loss");
    EXPECT_LT(losses.back(), losses.front()) << name;
  }
}

TEST(Training, WithoutCheckpointsStillLogs) {
  const Workspace work;
  expect_success(work.train({"--checkpoint.enabled=false"}));
  EXPECT_EQ(work.training_log().size(), 6U);
  EXPECT_FALSE(fs::exists(fs::symlink_status(work.path("run/LATEST"))));
  for (const auto& entry : fs::directory_iterator(work.path("run"))) {
    EXPECT_EQ(entry.path().extension(), ".jsonl") << entry.path();
  }
}

TEST(Training, SeedDecidesEveryLoss) {
  const Workspace work;
  const auto losses = [&](const std::string& folder, const std::string& change) {
    expect_success(work.train({"--checkpoint.checkpoint_dir=" + folder, change}));
    return column(work.training_log(folder), "loss");
  };
  const auto first = losses("a", "--seed=7");
  EXPECT_EQ(first, losses("b", "--seed=7"));
  EXPECT_NE(first, losses("c", "--seed=8"));
}

TEST(Training, ThreadsDoNotChangeTheCurve) {
  const Workspace work;
  const auto losses = [&](const std::string& folder, const std::string& threads) {
    ProcessOptions options;
    // Passive: threads that wait leave the cores to other tests.
    options.environment = {"OMP_NUM_THREADS=" + threads, "OMP_WAIT_POLICY=passive"};
    expect_success(work.train({"--checkpoint.checkpoint_dir=" + folder}, options));
    return column(work.training_log(folder), "loss");
  };
  const auto one = losses("one", "1"), two = losses("two", "2");
  ASSERT_EQ(one.size(), two.size());
  for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], two[i], 1e-5 * one[i]) << i;
}

TEST(Training, RecomputingGivesTheSameLosses) {
  const Workspace work;
  const auto losses = [&](const std::string& policy) {
    expect_success(
        work.train({"--checkpoint.checkpoint_dir=run-" + policy, "--recompute=" + policy}));
    return column(work.training_log("run-" + policy), "loss");
  };
  const auto none = losses("none");
  EXPECT_EQ(none, losses("light"));
  EXPECT_EQ(none, losses("block"));
}

TEST(Training, AccumulationIsOneLargeBatch) {
  const Workspace work;
  const auto log = [&](const std::string& folder, const std::string& rows) {
    expect_success(work.train(
        {"--checkpoint.checkpoint_dir=" + folder, "--step_scheduler.local_batch_size=" + rows}));
    return work.training_log(folder);
  };
  const auto pieces = log("pieces", "1"), whole = log("whole", "4");
  ASSERT_EQ(pieces.size(), whole.size());
  for (size_t i = 0; i < pieces.size(); ++i) {
    const double loss = whole[i].at("loss");
    EXPECT_NEAR(pieces[i].at("loss").get<double>(), loss, 1e-5 * loss) << "step " << i;
    EXPECT_EQ(pieces[i].at("num_label_tokens"), whole[i].at("num_label_tokens"));
  }
}

TEST(Training, PacksDocumentsIntoRows) {
  const Workspace work;
  const ProcessResult run =
      work.train({"--packed_sequence.pack_size=96", "--step_scheduler.local_batch_size=1",
                  "--step_scheduler.global_batch_size=2"});
  expect_success(run);
  EXPECT_THAT(run.out, HasSubstr("packed from 12 documents"));
  const auto packed = work.training_log();
  int64_t labels = 0;
  for (const auto& row : packed) labels += row.at("num_label_tokens").get<int64_t>();
  // Every document trains once an epoch, packed or not.
  expect_success(work.train());
  int64_t plain = 0;
  for (const auto& row : work.training_log()) plain += row.at("num_label_tokens").get<int64_t>();
  EXPECT_EQ(labels, plain);
  EXPECT_LT(packed.back().at("loss"), packed.front().at("loss"));
}

TEST(Training, TokenizedRowsTrainAsTheirText) {
  const Workspace work;
  std::string texts;
  for (const char* text : {"A spider has eight legs.", "A cat has four legs.", "2 + 3 = 5",
                           "There are 24 hours in a day."}) {
    texts += nlohmann::json{{"text", text}}.dump() + "\n";
  }
  ProcessOptions options;
  options.input = texts;
  const ProcessResult tokenized = work.run({"tokenize", "--tokenizer", "tokenizer.json"}, options);
  expect_success(tokenized);
  std::string rows;
  for (const std::string& line : lines_of(tokenized.out)) {
    std::vector<int64_t> ids = nlohmann::json::parse(line).at("ids");
    ids.insert(ids.begin(), 2);  // <bos>
    rows += nlohmann::json{{"input_ids", ids}, {"labels", ids}}.dump() + "\n";
  }
  work.write("texts.jsonl", texts);
  work.write("rows.jsonl", rows);
  const auto losses = [&](const std::string& name) {
    expect_success(work.train({"--checkpoint.checkpoint_dir=" + name,
                               "--dataset.path_or_dataset=" + name + ".jsonl",
                               "--step_scheduler.num_epochs=4"}));
    return column(work.training_log(name), "loss");
  };
  const auto text = losses("texts");
  EXPECT_EQ(text.size(), 4U);
  EXPECT_EQ(text, losses("rows"));
}

TEST(Training, FrozenEmbeddingsStayAsTheyAre) {
  const Workspace work;
  expect_success(work.train());
  fs::rename(work.path("run"), work.path("first"));
  const std::string before = work.text_path("first/LATEST/model/consolidated/model.safetensors");
  work.write("more.yaml", continuing_recipe(work, "first/LATEST/model/consolidated"));
  const std::string after = work.text_path(kLatestModel) + "/model.safetensors";
  const std::string embedding = "model.language_model.embed_tokens.weight";
  const std::string other = "model.language_model.layers.0.mlp.down_proj.weight";
  const auto same = [&](const std::string& name) {
    return same_bits(load_tensor(before, name).get(), load_tensor(after, name).get());
  };
  expect_success(work.run({"train", "more.yaml", "--freeze_config.freeze_embeddings=true"}));
  EXPECT_TRUE(same(embedding));
  EXPECT_FALSE(same(other));
  expect_success(work.run({"train", "more.yaml", "--freeze_config.freeze_embeddings=false"}));
  EXPECT_FALSE(same(embedding));
}

TEST(Training, CommandLineChangesTheRecipe) {
  const Workspace work;
  expect_success(
      work.train({"--step_scheduler.max_steps=3", "--optimizer.lr", "1e-3",
                  "--lr_scheduler.lr_decay_style=constant", "--lr_scheduler.lr_warmup_steps=0",
                  "--checkpoint.checkpoint_dir=elsewhere"}));
  EXPECT_FALSE(fs::exists(work.path("run")));
  EXPECT_EQ(column(work.training_log("elsewhere"), "lr"), std::vector<double>(3, 1e-3));
  const std::string config = read_file(work.path("elsewhere/LATEST/config.yaml"));
  EXPECT_THAT(config, HasSubstr("max_steps: 3"));
}

TEST(Training, KeepsAnEarlierRunInItsFolder) {
  const Workspace work;
  expect_success(work.train());
  const std::string first = read_file(work.path("run/training.jsonl"));
  const ProcessResult second = work.train({"--seed=8"});
  expect_success(second);
  EXPECT_THAT(second.out, HasSubstr("previous-1"));
  EXPECT_EQ(read_file(work.path("run/previous-1/training.jsonl")), first);
  EXPECT_EQ(fs::read_symlink(work.path("run/previous-1/LATEST")), "epoch_1_step_5");
  EXPECT_TRUE(fs::exists(work.path("run/previous-1/LATEST/model/consolidated/config.json")));
  expect_success(work.train({"--seed=9"}));
  EXPECT_TRUE(fs::exists(work.path("run/previous-2/training.jsonl")));
  EXPECT_EQ(read_file(work.path("run/previous-1/training.jsonl")), first);
}

TEST(Training, LogsTheCosineSchedule) {
  const Workspace work;
  expect_success(work.train(
      {"--optimizer.lr=0.01", "--lr_scheduler.init_lr=0.001", "--lr_scheduler.min_lr=0.0001"}));
  const auto rates = column(work.training_log(), "lr");  // after the step: what the next one uses
  ASSERT_EQ(rates.size(), 6U);
  for (int n = 1; n <= 6; ++n) {
    const double expected =
        n <= 2 ? 0.001 + 0.009 * n / 2.0
               : 0.0001 + 0.0099 * (1.0 + std::cos(std::numbers::pi * (n - 2) / 4.0)) / 2.0;
    EXPECT_NEAR(rates[static_cast<size_t>(n - 1)], expected, 1e-12) << "after step " << n;
  }
}

TEST(Training, LogsTheWsdSchedule) {
  const Workspace work;
  expect_success(work.train({"--optimizer.lr=0.01", "--lr_scheduler.lr_decay_style=WSD",
                             "--lr_scheduler.init_lr=0.0", "--lr_scheduler.min_lr=0.0",
                             "--lr_scheduler.wsd_decay_steps=2"}));
  const std::vector<double> expected = {0.005, 0.01, 0.01, 0.01, 0.005, 0.0};
  const auto rates = column(work.training_log(), "lr");
  ASSERT_EQ(rates.size(), expected.size());
  for (size_t i = 0; i < rates.size(); ++i) EXPECT_NEAR(rates[i], expected[i], 1e-12) << i;
}

TEST(Training, PrintsAnswersAtTheEnd) {
  const Workspace work;
  const ProcessResult run = work.train({"--samples.num_samples=2", "--samples.max_new_tokens=4"});
  expect_success(run);
  EXPECT_THAT(run.out, HasSubstr("--- sample 1"));
  EXPECT_THAT(run.out, HasSubstr("--- sample 2"));
  EXPECT_THAT(run.out, ::testing::Not(HasSubstr("--- sample 3")));
  EXPECT_THAT(run.out, HasSubstr("A spider has eight legs."));
}

}  // namespace
}  // namespace lapidary::test
