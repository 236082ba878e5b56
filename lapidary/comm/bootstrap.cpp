#include "lapidary/comm/bootstrap.h"

#include <algorithm>
#include <cstdlib>
#include <exception>

#include "lapidary/comm/mpi_group.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

// Of this process: MPI can be joined once.
bool joined = false;
int64_t rank_of_job = -1;

int64_t number(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 0 : std::atoll(text);
}

// Processes that a launcher says it started: mpirun of Open MPI; srun (a step, not the batch script
// around it, which has SLURM_NTASKS too); mpiexec of others, which are refused later.
int64_t processes_started() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) return number("OMPI_COMM_WORLD_SIZE");
  const bool step = std::getenv("PMIX_RANK") != nullptr || std::getenv("PMI_RANK") != nullptr;
  if (!step) return 1;
  return std::max(number("PMI_SIZE"), number("SLURM_STEP_NUM_TASKS"));
}

void require(int code, const char* what) {
  if (code != mpi::kSuccess) fail("MPI", what);
}

}  // namespace

World::World() {
  const int64_t started = processes_started();
  if (started <= 1) return;
  if (joined) fail("MPI", "can be joined once in a process");
  const mpi::Api& api = mpi::api();
  int provided = 0, rank = 0, size = 0;
  require(api.init_thread(nullptr, nullptr, mpi::kThreadFunneled, &provided), "does not start");
  joined = true;
  require(api.comm_set_errhandler(api.world, api.errors_return), "has no error handler");
  require(api.comm_rank(api.world, &rank), "gives no rank");
  require(api.comm_size(api.world, &size), "gives no size");
  rank_ = rank;
  size_ = size;
  if (size_ != started) {
    fail("MPI",
         "finds " + std::to_string(size_) + " processes where the launcher started " +
             std::to_string(started),
         "start with the mpirun of the same Open MPI, or with srun --mpi=pmix");
  }
  rank_of_job = rank_;
}

World::~World() {
  // Leaving waits for the other ranks: not when this one is on its way out.
  if (size_ > 1 && std::uncaught_exceptions() == 0) {
    mpi::api().finalize();
    rank_of_job = -1;
  }
}

std::unique_ptr<ProcessGroup> World::split(int64_t color, const std::string& name,
                                           int64_t piece_bytes) const {
  if (size_ == 1) return std::make_unique<SelfGroup>();
  const mpi::Api& api = mpi::api();
  mpi::Comm comm = nullptr;
  require(api.comm_split(api.world, static_cast<int>(color), static_cast<int>(rank_), &comm),
          "makes no group");
  int size = 0;
  require(api.comm_size(comm, &size), "gives no size");
  // Until the members are known their numbers in the group stand for them.
  std::vector<int64_t> ranks(static_cast<size_t>(size));
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r] = static_cast<int64_t>(r);
  const Tensor members(ranks.data(), Dtype::i64, {size});
  auto group = std::make_unique<MpiGroup>(comm, ranks, MpiGroup::Options{name, piece_bytes});
  int64_t mine = rank_;
  group->all_gather(ConstTensor(&mine, Dtype::i64, {1}), members);
  group->set_world_ranks(ranks);
  group->reset_traffic();
  return group;
}

void World::set_timeout(double seconds) const { MpiGroup::set_timeout(seconds); }

int64_t job_rank() { return rank_of_job; }

void end_job(int code) noexcept {
  if (!joined || rank_of_job < 0) return;
  mpi::api().abort(mpi::api().world, code);
}

}  // namespace lapidary
