#!/bin/sh
# Runs every micro-benchmark of a build folder: tools/bench.sh BUILD [ARGUMENTS...].
set -eu
build=$1
shift
count=0
for program in "$build"/bench/*; do
  [ -f "$program" ] && [ -x "$program" ] || continue
  "$program" "$@"
  count=$((count + 1))
done
[ "$count" -gt 0 ] || { echo "bench: nothing to run in $build/bench" >&2; exit 1; }
