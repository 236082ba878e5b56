#pragma once

#include <string>

namespace lapidary {

// Where memory lives and operations run.
//   cpu   the host, oneDNN and OpenMP        ref  the host, plain loops in f64 or c128
//   cuda  one GPU                            meta nowhere: shapes are checked, memory is counted
//   pinned  memory of the host that a GPU reads from; no operation runs there
enum class Backend { cpu, ref, cuda, meta, pinned };

const char* name_of(Backend backend);
// "cpu" or "cuda", as users write it. Error: another name.
Backend parse_backend(const std::string& text);
inline bool on_host(Backend backend) { return backend == Backend::cpu || backend == Backend::ref; }

}  // namespace lapidary
