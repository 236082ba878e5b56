#pragma once

#include <string>

namespace lapidary {

// Where memory lives and operations run.
//   cpu   the host, oneDNN and OpenMP        ref  the host, plain loops in f64 or c128
//   cuda  one GPU                            meta nowhere: shapes are checked, memory is counted
enum class Backend { cpu, ref, cuda, meta };

const char* name_of(Backend backend);
Backend parse_backend(const std::string& text);  // "cpu" or "cuda", as users write it

}  // namespace lapidary
