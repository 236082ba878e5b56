#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lapidary/comm/process_group.h"

namespace lapidary {

// The processes that a launcher started together (mpirun, srun): ranks 0 .. size() - 1. A process
// that was started alone is a world of one and needs no MPI.
//
// MPI is opened at run time (Open MPI 4 or 5, libmpi.so.40; another file: LAPIDARY_MPI), once in a
// process, by the first World.
class World {
 public:
  // Error when a launcher started several processes and MPI can't be opened: which library, how to
  // install it.
  World();
  // Leaves MPI when all ranks have come here (or the time is over), unless an exception is on its
  // way. Groups end before their World.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }
  // Ranks with the same color form a group, in the order of their ranks. Collective: every rank of
  // the world calls it. `name` (an axis) is for messages. Longer ones travel in pieces.
  std::unique_ptr<ProcessGroup> split(int64_t color, const std::string& name,
                                      int64_t piece_bytes = int64_t{1} << 30) const;
  // How long an operation of any group may wait for the other ranks before it throws Error with
  // rank, operation and group. 600 s until it is set.
  void set_timeout(double seconds) const;

 private:
  int64_t rank_ = 0;
  int64_t size_ = 1;
  std::unique_ptr<ProcessGroup> all_;  // null in a process alone
};

// For main(), which has no World: the rank of this process among several, -1 in a process alone;
// and the end of all processes of the job, at once, with this exit code (alone: nothing happens).
// Other ranks may wait for one that has failed, so this one must not just return.
int64_t job_rank();
void end_job(int code) noexcept;

}  // namespace lapidary
