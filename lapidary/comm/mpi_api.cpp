#include "lapidary/comm/mpi_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "lapidary/core/error.h"

namespace lapidary::mpi {
namespace {

constexpr int kMaxVersionString = 256;  // MPI_MAX_LIBRARY_VERSION_STRING

class Library {
 public:
  Library() {
    const char* named = std::getenv("LAPIDARY_MPI");
    name_ = named != nullptr ? named : "libmpi.so.40";
    // Open MPI's own plug-ins look their symbols up globally.
    handle_ = ::dlopen(name_.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (handle_ != nullptr) return;
    const char* reason = ::dlerror();
    fail("MPI",
         "several processes were started, but " + name_ +
             " can't be opened: " + (reason == nullptr ? "unknown reason" : reason),
         "install Open MPI 4 or 5 (Debian, Ubuntu: openmpi-bin), or name its library in "
         "LAPIDARY_MPI");
  }

  template <class T>
  void find(const char* symbol, T& out) const {
    void* address = ::dlsym(handle_, symbol);
    if (address == nullptr) {
      fail("MPI", name_ + " has no " + symbol + ": it is not Open MPI",
           "start with Open MPI's mpirun, and name its library in LAPIDARY_MPI");
    }
    out = reinterpret_cast<T>(address);
  }

  const std::string& name() const { return name_; }

 private:
  std::string name_;
  void* handle_ = nullptr;
};

Api open() {
  const Library library;
  int (*version)(char*, int*) = nullptr;
  library.find("MPI_Get_library_version", version);
  char text[kMaxVersionString] = {};
  int length = 0;
  version(text, &length);
  if (std::string(text).rfind("Open MPI", 0) != 0) {
    fail("MPI", library.name() + " is \"" + std::string(text).substr(0, 60) + "\"",
         "start with Open MPI's mpirun, and name its library in LAPIDARY_MPI");
  }
  Api out{};
  library.find("MPI_Init_thread", out.init_thread);
  library.find("MPI_Finalize", out.finalize);
  library.find("MPI_Abort", out.abort);
  library.find("MPI_Comm_rank", out.comm_rank);
  library.find("MPI_Comm_size", out.comm_size);
  library.find("MPI_Comm_split", out.comm_split);
  library.find("MPI_Comm_free", out.comm_free);
  library.find("MPI_Comm_set_errhandler", out.comm_set_errhandler);
  library.find("MPI_Isend", out.isend);
  library.find("MPI_Irecv", out.irecv);
  library.find("MPI_Test", out.test);
  library.find("MPI_Get_count", out.get_count);
  library.find("MPI_Error_string", out.error_string);
  library.find("ompi_mpi_comm_world", out.world);
  library.find("ompi_mpi_byte", out.byte);
  library.find("ompi_mpi_errors_return", out.errors_return);
  return out;
}

}  // namespace

const Api& api() {
  static const Api opened = open();
  return opened;
}

}  // namespace lapidary::mpi
