#!/bin/sh
# Lays out every C++ source with clang-format 14; --check only says what differs, and fails.
set -eu
cd "$(dirname "$0")/.."
tool=$(command -v clang-format-14 || command -v clang-format)
set -- "${1:-}"
if [ "$1" = --check ]; then mode="--dry-run -Werror"; else mode="-i"; fi
git ls-files -z -- '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 -r "$tool" $mode
