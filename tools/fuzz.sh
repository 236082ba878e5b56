#!/bin/sh
# Runs every fuzz target of a build folder: tools/fuzz.sh BUILD SECONDS.
# A target NAME starts from tests/fuzz/corpus/NAME, when there is one, and from what it found before.
set -eu
cd "$(dirname "$0")/.."
build=$1
seconds=$2
count=0
for target in "$build"/tests/fuzz/*_fuzz; do
  [ -x "$target" ] || continue
  name=$(basename "$target")
  found="$build/corpus/$name"
  mkdir -p "$found"
  seeds="tests/fuzz/corpus/$name"
  [ -d "$seeds" ] || seeds=""
  echo "fuzz: $name for $seconds s"
  # Hostile input must neither crash, nor hang, nor take memory without bound.
  "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=1024 \
    -print_final_stats=0 -verbosity=0 -artifact_prefix="$build/" "$found" $seeds
  count=$((count + 1))
done
[ "$count" -gt 0 ] || { echo "fuzz: no target in $build/tests/fuzz" >&2; exit 1; }
echo "fuzz: $count targets, no finding"
