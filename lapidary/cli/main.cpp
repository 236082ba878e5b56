#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>

#include "lapidary/cli/commands.h"
#include "lapidary/comm/bootstrap.h"

namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

int run(int argc, char** argv) {
  CLI::App app("lapidary: fine-tunes Gemma 4 models");
  app.name("lapidary");
  app.set_version_flag("--version", LAPIDARY_VERSION);
  app.require_subcommand(1);
  lapidary::cli::add_train(app);
  lapidary::cli::add_generate(app);
  lapidary::cli::add_trace(app);
  lapidary::cli::add_tokenize(app);
  lapidary::cli::add_inspect(app);
  lapidary::cli::add_recipe(app);
  lapidary::cli::add_bench(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {
    return app.exit(request);  // --help and --version
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return kUsage;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    const int rank = static_cast<int>(lapidary::job_rank());
    // What all ranks find wrong is told once: the first one ends the job before the others speak.
    if (rank > 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const std::string who = rank < 0 ? "" : "rank " + std::to_string(rank) + ": ";
    std::fprintf(stderr, "lapidary: %serror: %s\n", who.c_str(), error.what());
    std::fflush(stderr);
    lapidary::end_job(kFailed);  // others may wait for this one
    return kFailed;
  }
}
