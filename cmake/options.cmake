# Warnings, sanitizers and ccache, for our own targets only (third-party headers are SYSTEM).
add_library(lapidary_options INTERFACE)
target_compile_options(lapidary_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion $<$<BOOL:${LAPIDARY_WERROR}>:-Werror>>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall -lineinfo --expt-relaxed-constexpr
    $<$<BOOL:${LAPIDARY_WERROR}>:-Werror=all-warnings>>)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlapping copies in std::string's operator+ (GCC bug 105651).
  target_compile_options(lapidary_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
target_include_directories(lapidary_options INTERFACE ${CMAKE_SOURCE_DIR})

if(LAPIDARY_SANITIZE)
  target_compile_options(lapidary_options INTERFACE
    -fsanitize=${LAPIDARY_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(lapidary_options INTERFACE -fsanitize=${LAPIDARY_SANITIZE})
endif()

find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
