#pragma once

#include <CLI/CLI.hpp>

namespace lapidary::cli {

// One function for each command, in its own file: adds the subcommand to the program, with a
// callback that runs it. Callbacks throw Error; main prints it.
void add_train(CLI::App& app);
void add_generate(CLI::App& app);
void add_trace(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_inspect(CLI::App& app);
void add_recipe(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace lapidary::cli
