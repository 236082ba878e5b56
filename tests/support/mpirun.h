#pragma once

#include <string>
#include <vector>

#include "tests/support/process.h"

// Programs started on several ranks by Open MPI's mpirun.
namespace lapidary::test {

bool has_mpirun();
// mpirun -n RANKS COMMAND...
std::vector<std::string> on_ranks(int64_t ranks, const std::vector<std::string>& command);
// As options.environment: mpirun as root and with more ranks than cores; waiting threads sleep.
std::vector<std::string> mpi_environment();
// Process ids of the ranks of a running mpirun, by rank.
std::vector<int> rank_processes(int mpirun, int64_t ranks);

}  // namespace lapidary::test
