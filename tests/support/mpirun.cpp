#include "tests/support/mpirun.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

namespace lapidary::test {
namespace {

namespace fs = std::filesystem;

std::string path_of_mpirun() {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "/usr/bin" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string file = folder + "/mpirun";
    if (::access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

// The value of a variable in the environment a process was started with, "" without it.
std::string variable_of(const std::string& process, const std::string& name) {
  std::string all;
  try {
    all = read_file("/proc/" + process + "/environ");
  } catch (const std::exception&) {  // it has ended, or is somebody else's
    return "";
  }
  std::istringstream entries(all);
  for (std::string entry; std::getline(entries, entry, '\0');) {
    if (entry.rfind(name + "=", 0) == 0) return entry.substr(name.size() + 1);
  }
  return "";
}

std::string parent_of(const std::string& process) {
  try {
    const std::string stat = read_file("/proc/" + process + "/stat");
    std::istringstream rest(stat.substr(stat.rfind(')') + 1));
    std::string state, parent;
    rest >> state >> parent;
    return parent;
  } catch (const std::exception&) {
    return "";
  }
}

}  // namespace

bool has_mpirun() { return !path_of_mpirun().empty(); }

std::vector<std::string> on_ranks(int64_t ranks, const std::vector<std::string>& command) {
  std::vector<std::string> all = {path_of_mpirun(), "-n", std::to_string(ranks)};
  all.insert(all.end(), command.begin(), command.end());
  return all;
}

std::vector<std::string> mpi_environment() {
  return {"OMPI_ALLOW_RUN_AS_ROOT=1",
          "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
          "OMPI_MCA_rmaps_base_oversubscribe=1",
          "OMPI_MCA_hwloc_base_binding_policy=none",
          "OMP_WAIT_POLICY=passive",
          "OMP_NUM_THREADS=1"};
}

std::vector<int> rank_processes(int mpirun, int64_t ranks) {
  std::vector<int> out(static_cast<size_t>(ranks), -1);
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
    const std::string process = entry.path().filename().string();
    if (process.find_first_not_of("0123456789") != std::string::npos) continue;
    if (parent_of(process) != std::to_string(mpirun)) continue;
    const std::string rank = variable_of(process, "OMPI_COMM_WORLD_RANK");
    if (!rank.empty() && std::stoll(rank) < ranks) {
      out[static_cast<size_t>(std::stoll(rank))] = std::stoi(process);
    }
  }
  return out;
}

}  // namespace lapidary::test
