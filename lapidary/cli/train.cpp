#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>

#include "lapidary/cli/commands.h"
#include "lapidary/comm/bootstrap.h"
#include "lapidary/train/trainer.h"

namespace lapidary::cli {
namespace {

std::atomic<bool> stop_requested{false};

// The first signal ends the run after its step, with a checkpoint; the second one at once.
void on_signal(int signal) {
  if (stop_requested.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

int terminal_columns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void run(const std::string& path, const std::vector<std::string>& overrides) {
  const World world;
  const Recipe recipe = load_recipe(path, parse_overrides(overrides), world.size());
  world.set_timeout(60.0 * recipe.dist_timeout_minutes);
  const MeshGroups groups(
      Mesh(recipe.mesh), world.rank(),
      [&](int64_t color, const std::string& name) { return world.split(color, name); });
  std::signal(SIGTERM, on_signal);
  std::signal(SIGINT, on_signal);
  Trainer trainer(recipe,
                  {.out = &std::cout,
                   // mpirun gives its processes terminals of its own, wherever their lines go.
                   .terminal = world.size() == 1 && isatty(STDOUT_FILENO) != 0,
                   .columns = terminal_columns(),
                   .stop = &stop_requested},
                  groups);
  const TrainResult result = trainer.run();
  if (world.rank() != 0) return;
  fmt::print("{} steps, loss {:.4f}", result.steps, result.loss);
  if (result.first_val_loss && result.val_loss) {
    fmt::print(", validation loss {:.4f} -> {:.4f}", *result.first_val_loss, *result.val_loss);
  }
  fmt::print("{}\n", result.stopped ? " (stopped by a signal)" : "");
  if (!result.model_directory.empty()) fmt::print("model: {}\n", result.model_directory);
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Fine-tune a model as a recipe says");
  const auto path = std::make_shared<std::string>();
  command->add_option("recipe", *path, "the recipe, a YAML file")->required();
  command->allow_extras();
  command->footer(
      "Changes to the recipe follow it: --section.name=value, e.g. --optimizer.lr=1e-4\n"
      "`lapidary recipe --keys` lists all keys.\n"
      "On several ranks: mpirun -n 4 lapidary train RECIPE, or srun; see distributed.*");
  const auto device = std::make_shared<std::string>();
  command->add_option("--device", *device, "cpu or cuda, instead of the recipe's");
  command->callback([=] {
    std::vector<std::string> overrides = command->remaining();
    if (!device->empty()) overrides.push_back("--device=" + *device);
    run(*path, overrides);
  });
}

}  // namespace lapidary::cli
