#include "lapidary/train/recipe.h"

#include <fmt/format.h>

#include <memory>

#include "lapidary/cli/commands.h"

namespace lapidary::cli {
namespace {

struct Options {
  std::string path;
  bool keys = false;
  int64_t ranks = 1;
};

void run(const Options& options, const std::vector<std::string>& overrides) {
  if (options.keys) {
    fmt::print("{}", recipe_reference());
    return;
  }
  const Recipe recipe = load_recipe(options.path, parse_overrides(overrides), options.ranks);
  for (const std::string& note : recipe.notes) fmt::print(stderr, "note: {}\n", note);
  fmt::print("{}", print_recipe(recipe));
}

}  // namespace

void add_recipe(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("recipe", "Check a recipe and print it with every value in place");
  const auto options = std::make_shared<Options>();
  CLI::Option* path = command->add_option("recipe", options->path, "the recipe, a YAML file");
  CLI::Option* keys =
      command->add_flag("--keys", options->keys, "list all keys instead, as a Markdown table");
  path->excludes(keys);
  command->add_option("--ranks", options->ranks, "check it for so many ranks")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command->allow_extras();
  command->footer("Changes to the recipe follow it: --section.name=value");
  command->callback([=] {
    if (!options->keys && options->path.empty()) throw CLI::RequiredError("recipe");
    run(*options, command->remaining());
  });
}

}  // namespace lapidary::cli
