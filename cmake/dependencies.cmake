find_package(Threads REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(fmt REQUIRED)

# yaml-cpp's own configuration names the shared library; the static one makes the binary carry.
find_library(YAML_CPP_LIBRARY NAMES libyaml-cpp.a yaml-cpp REQUIRED)
find_path(YAML_CPP_INCLUDE yaml-cpp/yaml.h REQUIRED)
find_path(CLI11_INCLUDE CLI/CLI.hpp REQUIRED)

# Without oneDNN the cpu backend falls back to plain loops: right, but slow.
find_library(DNNL_LIBRARY NAMES dnnl)
find_path(DNNL_INCLUDE oneapi/dnnl/dnnl.hpp)
option(LAPIDARY_USE_ONEDNN "Use oneDNN where it is found" ON)
if(NOT LAPIDARY_USE_ONEDNN)
  set(LAPIDARY_ONEDNN OFF)
elseif(DNNL_LIBRARY AND DNNL_INCLUDE)
  set(LAPIDARY_ONEDNN ON)
else()
  set(LAPIDARY_ONEDNN OFF)
  message(WARNING "oneDNN not found (Debian, Ubuntu: libdnnl-dev): products will be slow")
endif()

if(LAPIDARY_TESTS)
  find_package(GTest REQUIRED)
endif()
if(LAPIDARY_BENCH)
  find_package(benchmark QUIET)
endif()
