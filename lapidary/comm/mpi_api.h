#pragma once

namespace lapidary::mpi {

// What this program uses of MPI, in the binary interface of Open MPI 4 and 5 (libmpi.so.40):
// handles are pointers, and the predefined ones are addresses of the library's own objects. Opened
// at run time, so that the program starts where there is no MPI.
using Comm = void*;
using Request = void*;
using Datatype = void*;

// Room for the library's record of a message (24 bytes in Open MPI), which only it reads.
struct alignas(8) Status {
  char bytes[64];
};

inline constexpr int kSuccess = 0;
inline constexpr int kThreadFunneled = 1;

struct Api {
  int (*init_thread)(int*, char***, int, int*);
  int (*finalize)();
  int (*abort)(Comm, int);
  int (*comm_rank)(Comm, int*);
  int (*comm_size)(Comm, int*);
  int (*comm_split)(Comm, int color, int key, Comm*);
  int (*comm_free)(Comm*);
  int (*comm_set_errhandler)(Comm, void*);
  int (*isend)(const void*, int count, Datatype, int to, int tag, Comm, Request*);
  int (*irecv)(void*, int count, Datatype, int from, int tag, Comm, Request*);
  int (*test)(Request*, int* done, Status*);
  int (*get_count)(const Status*, Datatype, int* count);
  int (*error_string)(int, char*, int*);
  Comm world;
  Datatype byte;
  void* errors_return;
};

// Opens the library, once. Error when there is none (LAPIDARY_MPI names another file), or when it
// is not Open MPI.
const Api& api();

}  // namespace lapidary::mpi
