#include "lapidary/train/bench.h"

#include <fmt/format.h>

#include <memory>

#include "lapidary/cli/commands.h"

namespace lapidary::cli {
namespace {

struct Options {
  BenchOptions bench;
  std::string device = "cpu", dtype = "bf16", recompute = "none";
};

void run(Options o) {
  o.bench.backend = parse_backend(o.device);
  o.bench.dtype = parse_dtype(o.dtype);
  o.bench.recompute = nn::parse_recompute(o.recompute);
  const BenchReport report = run_bench(o.bench);
  for (const BenchLine& line : report.lines) {
    fmt::print("{}\n", to_json(o.bench, report, line));
  }
}

void add_sizes(CLI::App& command, BenchOptions& bench) {
  const auto size = [&](const char* name, int64_t& value, const char* help) {
    return command.add_option(name, value, help)->check(CLI::PositiveNumber)->capture_default_str();
  };
  size("--batch", bench.batch, "rows of tokens");
  size("--seq", bench.seq, "tokens of a row");
  size("--prompt", bench.prompt, "decode: tokens of each prompt");
  size("--repeat", bench.repeat, "timed repetitions; decode: tokens");
  command.add_option("--layers", bench.layers, "step, decode: the first so many; default: all")
      ->check(CLI::PositiveNumber);
}

void add_optimizer(CLI::App& command, BenchOptions& bench) {
  command.add_option("--state-dtype", bench.state_dtype, "step: moments in fp32, bf16 or int8")
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  command.add_flag("!--no-master-weights", bench.master_weights,
                   "step: bf16 weights are rounded at random");
  command.add_flag("--optimizer-in-bwd", bench.optimizer_in_bwd,
                   "step: gradients are applied layer by layer inside backward");
  command.add_option("--max-grad-norm", bench.max_grad_norm, "step: 0 = no clipping")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

// Options that one kind of benchmark reads are refused by the others.
void check_use(const CLI::App& command, const std::string& what) {
  const auto only = [&](const char* option, std::initializer_list<const char*> kinds) {
    if (command.count(option) == 0) return;
    for (const char* kind : kinds) {
      if (what == kind) return;
    }
    throw CLI::ValidationError(option, fmt::format("does not belong to {}", what));
  };
  only("--layers", {"step", "decode"});
  only("--prompt", {"decode"});
  only("--recompute", {"period", "step"});
  for (const char* option :
       {"--state-dtype", "--no-master-weights", "--optimizer-in-bwd", "--max-grad-norm"}) {
    only(option, {"step"});
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("bench", "Time parts of a model with random weights, as JSON lines");
  const auto o = std::make_shared<Options>();
  command->add_option("what", o->bench.what, fmt::format("{}", fmt::join(bench_names(), ", ")))
      ->required()
      ->check(CLI::IsMember(bench_names()));
  command
      ->add_option("--config", o->bench.config,
                   "model directory, config.json, or 26b-a4b, 31b, e2b, e4b")
      ->required();
  add_sizes(*command, o->bench);
  command->add_option("--dtype", o->dtype, "fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--device", o->device, "cpu or cuda")->capture_default_str();
  command->add_option("--recompute", o->recompute, "period, step: none, light or block")
      ->check(CLI::IsMember({"none", "light", "block"}))
      ->capture_default_str();
  add_optimizer(*command, o->bench);
  command->add_flag("--profile", o->bench.profile,
                    "add the time of every operation of one more repetition");
  command->callback([=] {
    check_use(*command, o->bench.what);
    run(*o);
  });
}

}  // namespace lapidary::cli
