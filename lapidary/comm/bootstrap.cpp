#include "lapidary/comm/bootstrap.h"

#include <cstdlib>
#include <exception>
#include <numeric>

#include "lapidary/comm/mpi_group.h"
#include "lapidary/core/error.h"

namespace lapidary {
namespace {

// Of this process: MPI can be joined once.
bool joined = false;
int64_t rank_of_job = -1;

// Processes that a launcher says it started: mpirun of Open MPI, a launcher with PMI (srun, mpiexec
// of MPICH), or srun with neither. What MPI can't join is refused later, not run as so many jobs
// that write the same files. A batch script of Slurm is no step: it is alone, however many tasks it
// has.
int64_t processes_started() {
  for (const char* size : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    if (const char* text = std::getenv(size)) return std::atoll(text);
  }
  return 1;
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
  mpi::Comm all = nullptr;
  require(api.comm_split(api.world, 0, rank, &all), "makes no group");
  std::vector<int64_t> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), int64_t{0});
  all_ = std::make_unique<MpiGroup>(all, ranks, MpiGroup::Options{.name = "world"});
}

World::~World() {
  // Leaving waits for the other ranks: not when this one is on its way out.
  if (size_ == 1 || std::uncaught_exceptions() > 0) return;
  try {
    all_->barrier();  // MPI's own waiting knows no end
  } catch (const Error&) {
    return;  // the launcher sees a rank end that has not left, and ends the others
  }
  all_.reset();
  mpi::api().finalize();
  rank_of_job = -1;
}

std::unique_ptr<ProcessGroup> World::split(int64_t color, const std::string& name,
                                           int64_t piece_bytes) const {
  if (size_ == 1) return std::make_unique<SelfGroup>();
  // Who comes with which color; and all are here: MPI's own waiting knows no end.
  std::vector<int64_t> colors(static_cast<size_t>(size_)), members;
  all_->all_gather(ConstTensor(&color, Dtype::i64, {1}),
                   Tensor(colors.data(), Dtype::i64, {size_}));
  for (int64_t r = 0; r < size_; ++r) {
    if (colors[static_cast<size_t>(r)] == color) members.push_back(r);
  }
  mpi::Comm comm = nullptr;
  require(mpi::api().comm_split(mpi::api().world, static_cast<int>(color), static_cast<int>(rank_),
                                &comm),
          "makes no group");
  return std::make_unique<MpiGroup>(comm, members, MpiGroup::Options{name, piece_bytes});
}

void World::set_timeout(double seconds) const { MpiGroup::set_timeout(seconds); }

int64_t job_rank() { return rank_of_job; }

void end_job(int code) noexcept {
  if (!joined || rank_of_job < 0) return;
  mpi::api().abort(mpi::api().world, code);
}

}  // namespace lapidary
