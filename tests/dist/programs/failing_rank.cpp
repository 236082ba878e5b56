#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "lapidary/comm/bootstrap.h"
#include "lapidary/core/error.h"

// failing_rank HOW RANK: a job whose ranks meet again and again, until one of them fails.
//   throws: an Error    dies: SIGKILL    hangs: it stops for good    leaves: it ends by itself
// or, with "lags" and "starts late", until it stops for good where the others leave, or make a
// group.
namespace {

using lapidary::World;

void fail_as_told(const std::string& how) {
  if (how == "throws") lapidary::fail("the disk", "is on fire", "put it out");
  if (how == "dies") ::raise(SIGKILL);
  if (how == "hangs" || how == "lags" || how == "starts late") ::raise(SIGSTOP);
  if (how == "leaves") ::_exit(0);
}

void run(const std::string& how, int64_t rank) {
  const World world;
  world.set_timeout(60.0);  // a busy machine starts ranks one by one
  const auto group = world.split(0, "world");
  double sum = 1.0;
  for (int i = 0; i < 100; ++i) group->all_reduce(std::span<double>(&sum, 1));
  world.set_timeout(4.0);
  if (world.rank() == rank) fail_as_told(how);
  if (how == "lags") return;
  if (how == "starts late") world.split(0, "another");
  while (true) group->all_reduce(std::span<double>(&sum, 1));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    run(argv[1], std::atoll(argv[2]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", static_cast<int>(lapidary::job_rank()), error.what());
    lapidary::end_job(1);
    return 1;
  }
  return 0;
}
